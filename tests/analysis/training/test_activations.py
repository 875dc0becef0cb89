"""Activation probabilities before and after: planted biases and signs, and the counter's numbers written down as loops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM, PreTrainedModel

from lape_ds.analysis.analyze import analyze
from lape_ds.analysis.training.activation_measures import group_change, neuron_groups
from lape_ds.analysis.training.activations import EDGES, Activations
from lape_ds.analysis.training.results import analysis_dir
from lape_ds.analysis.training.run import AnalyzedRun, open_runs
from lape_ds.corpora.splitting import NUM_BUCKETS
from lape_ds.model.loading import load_tokenizer
from lape_ds.neurons.counts import CountedBlocks, Counts, CountSettings
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.training.texts import heldout_text
from tests.analysis.training.made_runs import make_run, read_analysis

LAST = [(2, 46), (2, 5), (2, 17)]  # of three layers: nothing counts behind it


def counts(active: torch.Tensor, tokens: torch.Tensor) -> Counts:
    settings = CountSettings("mlt_Latn", "m", "", 8, "float32")
    return Counts(active.int(), tokens, settings, (CountedBlocks("c", 0, 1, 0),))


def test_a_planted_change_is_told_exactly() -> None:
    """Neuron (0, 0) goes from 1/2 to 3/4 and (1, 2) from 1/2 to 1/4 in every bucket, all others stay."""
    tokens = torch.arange(1, NUM_BUCKETS + 1) * 8
    before = (tokens[:, None, None] // 2).expand(-1, 2, 3)
    after = before.clone()
    after[:, 0, 0], after[:, 1, 2] = tokens * 3 // 4, tokens // 4
    change = group_change(
        counts(before, tokens), counts(after, tokens), torch.tensor([[0, 0], [0, 1], [1, 2]])
    )
    assert (change.before, change.after) == (0.5, 0.5)
    assert (change.rising, change.falling) == (1 / 3, 1 / 3)
    assert change.mean_absolute == pytest.approx(1 / 6)
    assert change.by_layer == (1 / 8, -1 / 4)
    expected = {EDGES.index(-0.3): 1, EDGES.index(-0.001): 1, EDGES.index(0.1): 1}
    assert {place: number for place, number in enumerate(change.histogram) if number} == expected
    rising = group_change(counts(before, tokens), counts(after, tokens), torch.tensor([[0, 0]]))
    assert rising.change == 0.25
    assert rising.half_width == 0  # every bucket rises by the same share


def test_the_interval_is_of_buckets_of_text() -> None:
    """A change that only half of the buckets show is less sure than one that all show alike but for noise."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((NUM_BUCKETS,), 1000)
    before = torch.full((NUM_BUCKETS, 1, 2), 500)
    after = before.clone()
    after[:, 0, 0] += 100 + torch.randint(-9, 10, (NUM_BUCKETS,), generator=generator)
    after[::2, 0, 1] += 200 + torch.randint(-9, 10, (NUM_BUCKETS // 2,), generator=generator)
    even, uneven = (
        group_change(counts(before, tokens), counts(after, tokens), torch.tensor([[0, index]]))
        for index in (0, 1)
    )
    assert even.change == pytest.approx(0.1, abs=0.005)
    assert uneven.change == pytest.approx(0.1, abs=0.005)
    assert even.half_width is not None
    assert uneven.half_width is not None
    assert 0.002 < even.half_width < 0.006 < 0.04 < uneven.half_width


@pytest.fixture(scope="module")
def run(tiny_recipe: Path) -> AnalyzedRun:
    """Trained: three gates of the last layer with the opposite sign; a run whose neurons are just these."""

    def plant(model: PreTrainedModel) -> None:
        for layer, index in LAST:
            model.get_parameter(f"model.layers.{layer}.mlp.gate_proj.weight")[index] *= -1

    run_dir = make_run(tiny_recipe, "activated", method="random", plant=plant)
    own = NeuronSet.load(run_dir / "neurons.safetensors")
    indices = {"mlt_Latn": torch.tensor(sorted(LAST), dtype=torch.int32)}
    replace(own, indices=indices, method="random").save(run_dir / "neurons.safetensors")
    return open_runs([run_dir])[0]


@pytest.fixture(scope="module")
def analysed(run: AnalyzedRun) -> Activations:
    analyze([run.run_dir], only=["activations"])
    (content,) = read_analysis(analysis_dir(run.run_dir), "activations")
    return Activations.from_json(content)


def test_a_gate_of_the_opposite_sign_is_active_where_it_was_not(analysed: Activations) -> None:
    points = analysed.points["trained"]["mlt_Latn"]
    assert list(zip(points.layer, points.index, strict=True)) == sorted(LAST)
    for before, after in zip(points.before, points.after, strict=True):
        assert 0 < before < 1
        assert after == pytest.approx(1 - before)
    for code in analysed.num_tokens:
        random, whole = analysed.changes["random"][code], analysed.changes["all"][code]
        assert (random.change, random.rising, random.falling) == (0, 0, 0)  # others of the last layer
        assert whole.change == pytest.approx(analysed.changes["trained"][code].change * 3 / (3 * 47))
    assert analysed.num_neurons == {"trained": 3, "identified": 3, "random": 3, "all": 141}


def test_probabilities_are_those_of_a_loop_over_tokens(run: AnalyzedRun, analysed: Activations) -> None:
    """All of English's held-out blocks, one after the other, by a hook of the test's own."""
    stream = heldout_text(run.recipe, load_tokenizer(run.base_folder), "eng_Latn").heldout
    model = AutoModelForCausalLM.from_pretrained(run.base_folder, dtype=torch.float32)
    gates: list[torch.Tensor] = []
    module = model.get_submodule("model.layers.0.mlp.gate_proj")
    module.register_forward_hook(lambda _module, _args, output: gates.append(output[0]))
    tokens, active = 0, 0.0
    for number in range(stream.num_blocks(32, min(300, stream.num_tokens))):
        block = stream.block(number, 32)
        with torch.no_grad():
            model(block.input_ids[None])
        tokens += int(block.is_text.sum())
        active += float((gates.pop()[block.is_text] > 0).double().mean(1).sum())
    assert analysed.num_tokens["eng_Latn"] == tokens
    group = analysed.changes["identified"]["eng_Latn"]
    assert group.by_layer[1] is None  # Maltese has no neuron there
    content = json.loads((analysis_dir(run.run_dir) / "activations.json").read_text(encoding="utf-8"))
    assert content["num_neurons"]["all"] == 141
    points = [
        row
        for row in parquet.read_table(analysis_dir(run.run_dir) / "activations.parquet").to_pylist()
        if (row["group"], row["language"], row["layer"], row["index"]) == ("identified", "eng_Latn", 0, 1)
    ]
    assert len(points) == 1
    assert points[0]["before"] == points[0]["after"]  # the first layer did not change


def test_what_is_written_is_what_is_read(run: AnalyzedRun, analysed: Activations) -> None:
    folder = analysis_dir(run.run_dir)
    content = json.loads((folder / "activations.json").read_text(encoding="utf-8"))
    assert analysed.as_json() == {key: content[key] for key in analysed.as_json()}
    svg = (folder / "activations.svg").read_text(encoding="utf-8")
    assert "trained neurons" in svg
    assert (folder / "activations.png").stat().st_size > 10_000


def test_whole_weights_have_the_identified_neurons_as_group(tiny_recipe: Path) -> None:
    (made,) = open_runs([make_run(tiny_recipe, "whole", method="full")])
    groups, files = neuron_groups(made)
    assert list(groups) == ["identified", "random"]
    assert groups["identified"].tolist() == [[0, 1], [0, 30], [2, 46]]
    assert files == [made.recipe.train.neurons]
    assert groups["random"][:, 0].tolist() == [0, 0, 2]
    assert not set(map(tuple, groups["random"].tolist())) & set(map(tuple, groups["identified"].tolist()))
