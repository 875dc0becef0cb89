"""Weight updates against planted ones: known norm, direction and rank; and against whole matrices looked at in one piece."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lape_ds.analysis.analyze import analyze
from lape_ds.analysis.training.results import analysis_dir
from lape_ds.analysis.training.run import open_runs
from lape_ds.analysis.training.update_measures import (
    measure_directions,
    measure_part,
    measure_updates,
    model_parts,
)
from lape_ds.analysis.training.updates import Updates
from lape_ds.model.ffn import ffn_layers
from lape_ds.subnetwork.pack import Pack
from lape_ds.subnetwork.vectors import neuron_vectors
from tests.analysis.training.made_runs import make_run, read_analysis
from tests.tiny_models import tiny_model

SPLIT = [
    "llama",
    "phi3",
    "opt",
    "gpt_neox",
    "mixtral",
    "qwen2_moe",
]  # plain, fused, ungated, with biases, experts


def moved(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A copy in which about half of all weights have moved."""
    generator, other = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight += 0.1 * noise * (torch.rand(weight.shape, generator=generator) < 0.5)
    return other


@pytest.mark.parametrize("model_type", SPLIT)
def test_every_weight_is_in_one_part(model_type: str) -> None:
    model = tiny_model(model_type)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        for part in model_parts(model):
            for matrix in part.matrices(model):
                matrix += 1
    assert all((weight == 1).all() for weight in model.parameters())
    names = {part.name for part in model_parts(model) if part.layer == 1}
    gated = (
        {"gate_proj", "up_proj", "down_proj"}
        if model_type not in ("opt", "gpt_neox")
        else {"up_proj", "down_proj"}
    )
    assert gated <= names
    outside = {part.name for part in model_parts(model) if part.layer is None}
    assert "embeddings" in outside
    assert ("head" in outside) == (not model.config.tie_word_embeddings)


def ffn_matrix(model: PreTrainedModel, layer: int, projection: str) -> Tensor:
    """The neurons' vectors of a layer in one projection, of all experts below each other, float64 [neurons, D]."""
    found = ffn_layers(model)[layer]
    neurons = torch.tensor([[layer, index] for index in range(found.num_neurons)])
    return neuron_vectors(model, neurons)[layer][projection].double()  # type: ignore[index]


@pytest.mark.parametrize("model_type", SPLIT)
def test_measures_equal_whole_matrices(model_type: str) -> None:
    before = tiny_model(model_type)
    after = moved(before, 1)
    checked = 0
    for part in model_parts(before):
        if part.layer != 1 or part.name not in ("gate_proj", "up_proj", "down_proj"):
            continue
        found = measure_part(part, before, after)
        old, new = (ffn_matrix(model, 1, part.name) for model in (before, after))
        change = new - old
        assert (found.num_weights, found.num_changed) == (old.numel(), int((change != 0).sum()))
        assert found.full_rank == min(old.shape)
        assert found.norm == pytest.approx(float(old.norm()))
        assert found.change_norm == pytest.approx(float(change.norm()))
        assert found.changed_norm == pytest.approx(float(old[change != 0].norm()))
        assert found.cosine == pytest.approx(
            float(torch.cosine_similarity(old.flatten(), change.flatten(), dim=0))
        )
        values = np.linalg.svd(change.numpy(), compute_uv=False)
        shares = values / values.sum()
        assert found.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
        assert found.stable_rank == pytest.approx((values**2).sum() / values.max() ** 2, rel=1e-6)
        checked += 1
    assert checked >= 2


def test_planted_change_is_found() -> None:
    """dW of two equal singular values 3 in three neurons; dW = W / 4 elsewhere; and none where nothing is planted."""
    before = tiny_model("llama")
    after = copy.deepcopy(before)
    width = before.config.hidden_size
    directions = torch.linalg.qr(
        torch.randn(width, 2, generator=torch.Generator().manual_seed(0))
    ).Q.T  # [2, D]
    with torch.no_grad():
        # Rows of norm 3 in two directions: neurons 4 and 7 the first (of 3/sqrt 2 each), neuron 9 the second.
        for index, vector in (
            (4, directions[0] / math.sqrt(2)),
            (7, directions[0] / math.sqrt(2)),
            (9, directions[1]),
        ):
            after.get_parameter("model.layers.0.mlp.gate_proj.weight")[index] += 3 * vector
        after.get_parameter("model.layers.2.mlp.down_proj.weight").mul_(1.25)
        after.get_parameter("model.layers.1.self_attn.q_proj.weight").mul_(0.5)
    found = {(part.layer, part.name): measure_part(part, before, after) for part in model_parts(before)}
    gate = found[0, "gate_proj"]
    assert gate.effective_rank == pytest.approx(2, rel=1e-5)
    assert gate.stable_rank == pytest.approx(2, rel=1e-5)
    assert gate.change_norm == pytest.approx(math.sqrt(18), rel=1e-6)
    assert gate.num_changed == 3 * width
    down, query = found[2, "down_proj"], found[1, "self_attn.q_proj"]
    assert (down.relative, down.cosine, down.share_changed) == (pytest.approx(0.25), pytest.approx(1), 1)
    assert (query.relative, query.cosine) == (pytest.approx(0.5), pytest.approx(-1))
    still = [
        one
        for place, one in found.items()
        if place not in ((0, "gate_proj"), (2, "down_proj"), (1, "self_attn.q_proj"))
    ]
    assert len(still) > 20
    for one in still:
        assert (one.num_changed, one.change_norm, one.effective_rank, one.cosine) == (0, 0, None, None)


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where more vectors have changed than they are long, so that the other Gram matrix is taken."""
    before = tiny_model("llama")
    after = moved(before, 2)
    parts = [part for part in model_parts(before) if part.layer == 0 or part.name == "embeddings"]
    whole = [measure_part(part, before, after) for part in parts]
    monkeypatch.setattr("lape_ds.analysis.training.update_measures._PIECE", 40)  # two or three rows
    for part, expected in zip(parts, whole, strict=True):
        found = measure_part(part, before, after)
        for key, value in expected.as_json().items():
            assert getattr(found, key) == (
                pytest.approx(value, rel=1e-9) if isinstance(value, float) else value
            )


def plant_first(model: PreTrainedModel) -> None:
    model.get_parameter("model.layers.0.mlp.gate_proj.weight")[1] += 0.5
    model.get_parameter("model.layers.2.mlp.down_proj.weight")[:, 46] -= 0.25


def plant_opposite(model: PreTrainedModel) -> None:
    """In layer 0 twice as far the other way; layer 2 as the first; and the head, at right angles to all that."""
    model.get_parameter("model.layers.0.mlp.gate_proj.weight")[1] -= 1.0
    model.get_parameter("model.layers.2.mlp.down_proj.weight")[:, 46] -= 0.25
    model.get_parameter("model.norm.weight")[0] += 1.0


def test_runs_side_by_side(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lape_ds.analysis.training.results.FORMATS", ("svg",))  # drawing takes the time
    runs = [
        make_run(tiny_recipe, "updates/one", plant=plant_first),
        make_run(tiny_recipe, "updates/two", method="full", plant=plant_opposite),
    ]
    analyze(runs, only=["updates"])
    folder = runs[0].parent / "analysis"
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{ending}" for name in ("updates", "directions") for ending in ("json", "parquet", "svg")
    }
    first, second = (Updates.from_json(content) for content in read_analysis(folder, "updates"))
    (alone,) = read_analysis(analysis_dir(runs[0]), "updates")
    assert Updates.from_json(alone).parts == first.parts
    assert (first.subject.name, second.subject.name) == ("one", "two")
    assert first.total().num_changed == 64
    assert first.total("gate_proj").change_norm == pytest.approx(0.5 * math.sqrt(32), rel=1e-6)
    assert second.total("vectors").num_changed == 1
    told = capsys.readouterr().out
    assert "one (subnetwork)" in told
    assert "two (full)" in told

    directions = measure_directions(open_runs(runs))
    assert directions.cosines("gate_proj", 0)[0][1] == pytest.approx(-1, rel=1e-6)
    assert directions.cosines("down_proj", 2)[0][1] == pytest.approx(1, rel=1e-6)
    assert directions.cosines("down_proj", 1) == [[None, None], [None, None]]
    assert directions.cosines("vectors")[0][1] is None
    # -0.5 * 1.0 * 32 + 0.25 * 0.25 * 32 over the norms
    expected = (-16 + 2) / math.sqrt((8 + 2) * (32 + 2 + 1))
    assert directions.cosines()[0][1] == pytest.approx(expected, rel=1e-5)


def test_a_pack_is_as_good_as_an_export(tiny_recipe: Path) -> None:
    exported = make_run(tiny_recipe, "updates/exported", plant=plant_first)
    packed = make_run(tiny_recipe, "updates/packed")
    (run,) = open_runs([exported])
    neurons = torch.tensor([[0, 1], [2, 46]], dtype=torch.int32)
    Pack(
        neurons=neurons,
        new=neuron_vectors(run.load_trained(), neurons),
        base=neuron_vectors(run.load_base(), neurons),
        base_fingerprint=run.facts["model_fingerprint"],
        base_model="base",
        languages=("mlt_Latn",),
        origin={"step": 40},
    ).save(packed / "pack.safetensors")
    of_export, of_pack = measure_updates(run), measure_updates(open_runs([packed])[0])
    assert of_pack.parts == of_export.parts
    for one, path, step in ((of_export, "model", 0), (of_pack, "pack.safetensors", 40)):
        base, trained = one.subject.inputs
        assert (base.step, base.digest) == (None, run.facts["model_fingerprint"])
        assert (trained.path, trained.step) == (path, step)
    assert of_export.subject.inputs[1].digest == "of the test"
