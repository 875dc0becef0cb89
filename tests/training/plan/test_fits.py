"""The preflight's question to the plan, on the machine at hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lape_ds.errors import UserError
from lape_ds.model.loading import recipe_model
from lape_ds.recipe import Recipe, load_recipe
from lape_ds.training.plan.cluster import Cluster
from lape_ds.training.plan.fits import check_memory, planned
from lape_ds.training.setup import base_skeleton

NEURONS = torch.tensor([(0, 1), (0, 30), (2, 46)])  # of the tiny model
OFFLOAD = ["deepspeed.zero_stage=3", "deepspeed.offload_optimizer=cpu", "train.method=full"]


def shapes(recipe: Recipe) -> PreTrainedModel:
    return base_skeleton(recipe, recipe_model(recipe))


@pytest.mark.parametrize(
    ("memory", "outcome"), [(0.85, "refused"), (1.02, "warned"), (1.2, "silent")], ids=str
)
def test_refused_warned_or_silent(
    tiny_recipe: Path, memory: float, outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a machine of so many times the planned peak, 8 % of which are kept free."""
    recipe = load_recipe(tiny_recipe)
    found = planned(recipe, shapes(recipe), recipe.train, NEURONS, Cluster(1, 2, 10**12, gpu=""))
    assert found is not None
    cluster = Cluster(1, 2, int(memory * found.peak), gpu="")
    if outcome == "refused":
        with pytest.raises(
            UserError,
            match=r"^by the plan this setting takes .*B of a rank that has .*`lape-ds plan`.*, and launch.check_memory=warn",
        ):
            check_memory(recipe, shapes(recipe), recipe.train, NEURONS, cluster)
        return
    check_memory(recipe, shapes(recipe), recipe.train, NEURONS, cluster)
    assert ("warning: by the plan" in capsys.readouterr().err) == (outcome == "warned")


def test_the_models_shapes_stay_as_they_were(tiny_recipe: Path) -> None:
    """Training goes on with them (ZeRO-3 fills them with weights): no method is put into them, and no other attention."""
    recipe = load_recipe(tiny_recipe)
    planned_for, other = shapes(recipe), shapes(recipe)
    assert planned(recipe, planned_for, recipe.train, NEURONS, Cluster(1, 2, 10**12, gpu="")) is not None
    assert str(planned_for) == str(other)
    assert all(param.requires_grad for param in planned_for.parameters())
    assert planned_for.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("setting", "words"), [("warn", "warning: by the plan this setting takes"), ("off", "")]
)
def test_a_refusal_can_be_passed_by(
    tiny_recipe: Path, setting: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe(tiny_recipe, ["train.method=full", f"launch.check_memory={setting}"])
    check_memory(recipe, shapes(recipe), recipe.train, None, Cluster(1, 2, 1000, gpu=""))
    told = capsys.readouterr().err
    assert told.startswith(words) if words else not told


def test_a_plan_that_fails_stops_nothing(tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For want of neurons, which is our fault: the caller's."""
    recipe, cluster = load_recipe(tiny_recipe), Cluster(1, 2, 1000, gpu="")
    check_memory(recipe, shapes(recipe), recipe.train, None, cluster)
    assert "warning: the plan fails, so nothing is known of the memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("memory", "outcome"), [(0.85, "refused"), (0.95, "warned"), (1.0, "silent"), (None, "silent")], ids=str
)
def test_what_is_offloaded_must_fit_the_host(
    tiny_recipe: Path, memory: float | None, outcome: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a node that has so many times what two ranks move there; None: not known."""
    recipe = load_recipe(tiny_recipe, OFFLOAD)
    gpus = Cluster(1, 2, 10**12)
    found = planned(recipe, shapes(recipe), recipe.train, None, gpus)
    assert found is not None
    weights = sum(param.numel() for param in shapes(recipe).parameters())
    assert found.host >= (4 + 4 + 8) * weights, "masters, their gradients, two moments"
    cluster = replace(gpus, host_memory=None if memory is None else int(memory * found.host))
    if outcome == "refused":
        with pytest.raises(
            UserError, match=r"^by the plan offload takes .*B of a node that has .*host memory"
        ):
            check_memory(recipe, shapes(recipe), recipe.train, None, cluster)
        return
    check_memory(recipe, shapes(recipe), recipe.train, None, cluster)
    assert ("warning: by the plan offload" in capsys.readouterr().err) == (outcome == "warned")


def test_offload_saves_nothing_where_there_is_no_gpu(tiny_recipe: Path) -> None:
    """A rank's masters and moments are moved within its own memory."""
    (own, moved) = (load_recipe(tiny_recipe, [*OFFLOAD[::2], *more]) for more in ([], OFFLOAD[1:2]))
    cluster = Cluster(1, 2, 10**12, gpu="")
    kept, offloaded = (
        planned(recipe, shapes(recipe), recipe.train, None, cluster) for recipe in (own, moved)
    )
    assert kept is not None
    assert offloaded is not None
    states = kept.gpu["masters"] + kept.gpu["moments"]
    assert offloaded.gpu["masters"] + offloaded.gpu["moments"] == 0
    assert offloaded.gpu["offloaded"] >= states > 0
    assert kept.gpu["offloaded"] == 0
    on_gpu = planned(moved, shapes(moved), moved.train, None, Cluster(1, 2, 10**12))
    assert on_gpu is not None
    assert offloaded.peak >= on_gpu.peak + states
