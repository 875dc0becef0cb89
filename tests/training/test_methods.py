"""Training and export of the methods that the subnetwork is compared with, each against its definition."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lape_ds.identification.stage import identify
from lape_ds.neurons.counts import Counts
from lape_ds.recipe import load_recipe
from lape_ds.training.checkpoint import open_checkpoint
from lape_ds.training.export import export_model
from tests.processes import run_ranks
from tests.training.test_train import run, steps_of


def exported(run_dir: Path) -> dict[str, Tensor]:
    return load_file(export_model(run_dir, checkpoint="last").folder / "model.safetensors")


def trained_values(run_dir: Path, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor of the last checkpoint, flat, as it was saved."""
    reader = open_checkpoint(run_dir / "checkpoints", "last")
    assert reader is not None
    found = {}
    for name in reader.names:
        parts = [
            load_file(path)[key].flatten()
            for path in sorted(reader.folder.glob("rank-*.safetensors"))
            for key in load_file(path)
            if key.split("|")[:2] == ["master", name]
        ]
        found[name] = torch.cat(parts)
    return found


@pytest.fixture(scope="module")
def base(tiny_recipe: Path) -> dict[str, Tensor]:
    return load_file(tiny_recipe.parent / "base" / "model.safetensors")


def test_lora_is_matched_trained_and_merged(tiny_recipe: Path, base: dict[str, Tensor]) -> None:
    """Three neurons of 3 x 32 weights are 288; LoRA adds 3 layers x 3 x (32 + 47) = 711 for each r: r 1 is the nearest."""
    overrides = ["train.method=lora", "train.lora.r=match", "train.lora.dropout=0"]
    run_dir = run(tiny_recipe, "lora-match", *overrides)
    facts = json.loads((run_dir / "run.json").read_text())
    assert facts["trained_parameters"] == 711
    assert facts["parameters"] == sum(weight.numel() for weight in base.values())
    done = export_model(run_dir, checkpoint="last")
    assert "; an adapter of 711 weights was merged into the model and changed " in str(done)
    values, merged = trained_values(run_dir, base), load_file(done.folder / "model.safetensors")
    changed = set()
    for name, weight in base.items():
        lora_a = values.get(f"{name.removesuffix('.weight')}.lora_A.default.weight")
        if lora_a is None:
            assert torch.equal(merged[name], weight), name
            continue
        lora_b = values[f"{name.removesuffix('.weight')}.lora_B.default.weight"]
        expected = weight + 2 * torch.outer(lora_b, lora_a)  # alpha is 2 r
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-7)
        changed.add(name.split(".")[-2])
    assert changed == {"gate_proj", "up_proj", "down_proj"}


def test_ia3_is_trained_and_merged(tiny_recipe: Path, base: dict[str, Tensor]) -> None:
    run_dir = run(
        tiny_recipe, "ia3", "train.method=ia3", "deepspeed.zero_stage=3", "train.optimizer.learning_rate=0.05"
    )
    values, merged = trained_values(run_dir, base), exported(run_dir)
    seen = set()
    for name, weight in base.items():
        scale = values.get(f"{name.removesuffix('.weight')}.ia3_l.default")
        if scale is None:
            assert torch.equal(merged[name], weight), name
            continue
        assert not torch.equal(scale, torch.ones_like(scale))
        projection = name.split(".")[-2]
        expected = weight * (scale if projection == "down_proj" else scale[:, None])
        torch.testing.assert_close(merged[name], expected, rtol=1e-5, atol=1e-7)
        seen.add(projection)
    assert seen == {"k_proj", "v_proj", "down_proj"}


def test_topk_trains_the_most_active_neurons(tiny_recipe: Path, base: dict[str, Tensor]) -> None:
    """As many in every layer as the target has: layer 0 two, layer 1 none, layer 2 one."""
    settings = ["identify.tokens_per_language=2000", "identify.context_length=32", "identify.batch_size=8"]
    recipe = load_recipe(str(tiny_recipe), settings)
    identify(recipe)
    run_dir = run(tiny_recipe, "topk", "train.method=topk", *settings)
    counts = Counts.load(recipe.identify_dir / "counts" / "mlt_Latn.safetensors").active.sum(0)
    merged = exported(run_dir)
    for layer, number in ((0, 2), (1, 0), (2, 1)):
        name = f"model.layers.{layer}.mlp.gate_proj.weight"
        moved = (merged[name] != base[name]).any(1).nonzero().flatten().tolist()
        ranked = sorted(range(counts.shape[1]), key=lambda index: (-int(counts[layer, index]), index))
        assert moved == sorted(ranked[:number])


def test_the_anchor_holds_also_after_an_interruption(tiny_recipe: Path, base: dict[str, Tensor]) -> None:
    """A pull of the whole way back after each step leaves the base, whatever was trained before the pull was resumed."""
    strong = ["train.anchor.l2=1e6", "train.schedule.name=constant"]
    for method in ("full", "subnetwork"):
        run_dir = run(tiny_recipe, f"{method}-anchored", f"train.method={method}", *strong)
        merged = exported(run_dir)
        for name, weight in base.items():
            torch.testing.assert_close(merged[name], weight, rtol=0, atol=0)


def test_compiled_and_recomputed_training_is_the_same_run(tiny_recipe: Path) -> None:
    plain = run(tiny_recipe, "compact-plain")
    for name, override in (
        ("reentrant", "train.gradient_checkpointing=reentrant"),
        ("masked", "train.engine=masked"),
    ):
        other = run(tiny_recipe, f"compact-{name}", override)
        assert steps_of(other) == pytest.approx(steps_of(plain), rel=1e-6)


def test_compiling_under_zero_3_is_refused(tiny_recipe: Path) -> None:
    with pytest.raises(
        AssertionError, match=r"train.torch_compile: true has no use under deepspeed.zero_stage 3"
    ):
        run_ranks(
            "lape_ds.training.main",
            [str(tiny_recipe), "train.torch_compile=true", "deepspeed.zero_stage=3"],
            world_size=1,
        )
