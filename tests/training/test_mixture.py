"""A mixture of experts through every stage: identification, training on any layout, export."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lape_ds.errors import UserError
from lape_ds.identification.stage import identify
from lape_ds.model.loading import load_model
from lape_ds.neurons.counts import Counts
from lape_ds.recipe import TrainSection, load_recipe
from lape_ds.subnetwork.methods import prepare, with_matched_lora
from lape_ds.training.export import count_changes, export_model
from lape_ds.training.metrics import read_metrics
from lape_ds.training.sweep_launch import launch_sweep
from tests.oracles.subnetwork import entry_positions
from tests.processes import run_ranks
from tests.tiny_models import MIXTURES, NUM_EXPERTS, NUM_LAYERS, tiny_model

LANGUAGE = "mlt_Latn"
SIZE = 24  # transformers runs these experts by grouped_mm, which takes no odd sizes on a CPU
NEURONS = [(0, 0), (0, 22), (0, 46 + 5), (2, 91)]


@pytest.fixture(scope="module")
def mixture(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a recipe whose model is a tiny Mixtral of 4 experts, with the neurons that LAPE finds in it."""
    folder = tmp_path_factory.mktemp("mixture")
    tokenizer = AutoTokenizer.from_pretrained(tiny_recipe.parent / "tokenizer")
    model = tiny_model("mixtral", vocab_size=len(tokenizer), intermediate_size=SIZE)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    arguments = [f"model.path={folder / 'base'}", f"output_dir={folder / 'out'}", "train.neurons=null"]
    arguments += ["identify.tokens_per_language=3000"]
    identify(load_recipe(str(tiny_recipe), arguments))
    return [str(tiny_recipe), *arguments]


@pytest.fixture(scope="module")
def trained(mixture: list[str]) -> Path:
    run_ranks("lape_ds.training.main", mixture, world_size=1)
    return load_recipe(mixture[0], mixture[1:]).run_dir


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]


def test_identification(mixture: list[str]) -> None:
    recipe = load_recipe(mixture[0], mixture[1:])
    found = identify(recipe)
    assert (found.neurons_per_layer, found.experts_per_layer) == (NUM_EXPERTS * SIZE, NUM_EXPERTS)
    everything = found.union(*found.languages)
    assert len(everything) == round(0.05 * NUM_LAYERS * NUM_EXPERTS * SIZE)
    assert len((everything[:, 1] // SIZE).unique()) > 1, "neurons of several experts"
    counts = Counts.load(recipe.identify_dir / "counts" / f"{LANGUAGE}.safetensors")
    assert counts.expert_tokens is not None
    assert torch.equal(counts.expert_tokens.sum(-1), 2 * counts.tokens[:, None].expand(-1, NUM_LAYERS))


@pytest.mark.parametrize(
    "overrides",
    [["train.engine=masked"], ["train.engine=compact", "train.gradient_checkpointing=non_reentrant"]],
    ids=["masked", "compact-recomputed"],
)
def test_two_ranks_under_zero_3_give_the_same_run(
    mixture: list[str], trained: Path, overrides: list[str], request: pytest.FixtureRequest
) -> None:
    layout = ["deepspeed.zero_stage=3", "train.gradient_accumulation_steps=1"]
    arguments = [*mixture, f"train.run_name={request.node.callspec.id}", *layout, *overrides]
    run_ranks("lape_ds.training.main", arguments, world_size=2)
    again = load_recipe(arguments[0], arguments[1:]).run_dir
    assert losses(again) == pytest.approx(losses(trained), rel=1e-5)


def test_a_run_goes_on_with_the_other_engine(mixture: list[str], trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(load_recipe(mixture[0], mixture[1:]).output_dir, out)
    arguments = [*mixture, f"output_dir={out}", "train.engine=masked"]
    run_dir = load_recipe(arguments[0], arguments[1:]).run_dir
    shutil.rmtree(max((run_dir / "checkpoints").glob("step-*")))
    run_ranks("lape_ds.training.main", arguments, world_size=1)
    assert losses(run_dir) == pytest.approx(losses(trained), rel=1e-5)
    assert len(losses(run_dir)) == 6


@pytest.mark.parametrize(
    "settings",
    [{"method": "ia3"}, {"method": "lora"}, {"method": "lora", "lora": {"targets": "all"}}],
    ids=str,
)
def test_adapters_are_refused(settings: dict[str, Any]) -> None:
    """PEFT finds no linear in the experts: what it would compare with is attention alone."""
    train = TrainSection.model_validate(settings)
    with pytest.raises(UserError, match=f"{train.method} is not supported for mixtures of experts .mixtral"):
        prepare(tiny_model("mixtral"), train, None)
    matched = train.model_copy(update={"lora": train.lora.model_copy(update={"r": "match"})})
    if train.method == "lora":
        with pytest.raises(UserError, match="lora is not supported for mixtures"):
            with_matched_lora(matched, tiny_model("mixtral"), torch.tensor(NEURONS))


def test_a_sweep_refuses_adapters_before_its_first_run(mixture: list[str]) -> None:
    path, *overrides = [*mixture, "sweep.variants=[{method: subnetwork}, {method: ia3, name: scales}]"]
    recipe = load_recipe(path, overrides)
    with pytest.raises(UserError, match=r"^sweep\.variants: scales: train\.method=ia3 is not supported"):
        launch_sweep(recipe, path, overrides)
    assert not recipe.sweep_dir.exists()


def test_export_is_the_base_but_for_the_subnetwork(mixture: list[str], trained: Path) -> None:
    recipe = load_recipe(mixture[0], mixture[1:])
    neurons = [(layer, index) for layer, index in identify(recipe).neurons(LANGUAGE).tolist()]
    done = export_model(trained, checkpoint="last")
    base = AutoModelForCausalLM.from_pretrained(recipe.model.path)
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    positions = entry_positions(base, neurons)
    changed = 0
    for (name, weight), (_, before) in zip(model.named_parameters(), base.named_parameters(), strict=True):
        differs = {tuple(place) for place in (weight != before).nonzero().tolist()}
        assert differs <= set(positions.get(name, [])), name
        changed += len(differs)
    assert done.changed == changed
    assert changed > 0.9 * done.trained  # an expert may have had no token
    assert done.trained == sum(len(places) for places in positions.values())


def nudge(model: PreTrainedModel, name: str, places: list[tuple[int, ...]]) -> None:
    with torch.no_grad():
        model.get_parameter(name)[tuple(torch.tensor(places).T)] += 1.0


@pytest.mark.parametrize("model_type", MIXTURES)
def test_export_check_reads_the_files_of_every_mixture(model_type: str, tmp_path: Path) -> None:
    """`save_pretrained` splits the experts into a tensor each; the check compares those."""
    tiny_model(model_type).save_pretrained(tmp_path / "base")
    base, model = (
        load_model(tmp_path / "base", dtype="float32", attn_implementation="eager") for _ in range(2)
    )
    positions = entry_positions(base, NEURONS)
    for name, places in positions.items():
        nudge(model, name, places)
    model.save_pretrained(tmp_path / "trained")
    changed = count_changes(tmp_path / "trained", base, torch.tensor(NEURONS))
    assert changed == sum(len(places) for places in positions.values())

    for name, place in (
        ("model.layers.0.mlp.experts.down_proj", (1, 3, 0)),  # column 0 is a neuron of expert 0, not of 1
        ("model.layers.1.mlp.experts.gate_up_proj", (0, 0, 0)),  # a layer without neurons
        ("model.layers.0.mlp.gate.weight", (0, 0)),  # the router
    ):
        nudge(model, name, [place])
        model.save_pretrained(tmp_path / "spoilt")
        with pytest.raises(RuntimeError, match="differs from the base where nothing was trained"):
            count_changes(tmp_path / "spoilt", base, torch.tensor(NEURONS))
        with torch.no_grad():
            model.get_parameter(name)[place] = base.get_parameter(name)[place]
