"""However many ranks count, and whatever happens to them, the files of counts say and hold the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lape_ds.identification.stage import identify
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import Recipe
from tests.identification.making import CODES, counts_of, make_recipe, write_recipe
from tests.processes import run_ranks

SMALL_SHARDS = {
    "shard_tokens": 512,
    "batch_size": 3,
}  # 8 blocks, so that the last batch of most units is not full


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Recipe:
    """Counted by one process."""
    recipe = make_recipe(tmp_path_factory.mktemp("alone"), model_folder, identify=SMALL_SHARDS)
    identify(recipe)
    assert sorted(counts_of(recipe)) == sorted(CODES)
    return recipe


def on_ranks(
    tmp_path: Path, model_folder: Path, *settings: str, world_size: int = 2, **changes: Any
) -> Recipe:
    changes["identify"] = SMALL_SHARDS | changes.get("identify", {})
    recipe = make_recipe(tmp_path, model_folder, **changes)
    path = write_recipe(recipe, tmp_path)
    run_ranks("lape_ds.cli", ["identify", str(path), *settings], world_size=world_size)
    return recipe


@pytest.mark.parametrize(
    ("world_size", "changes"),
    [
        (1, {}),
        (2, {}),
        (3, {}),
        (2, {"zero_stage": 3}),
        (1, {"zero_stage": 3}),
    ],
)
def test_same_counts_on_any_ranks(
    tmp_path: Path, model_folder: Path, alone: Recipe, world_size: int, changes: dict[str, Any]
) -> None:
    recipe = on_ranks(tmp_path, model_folder, world_size=world_size, identify=changes)
    assert counts_of(recipe) == counts_of(alone)
    found, expected = (NeuronSet.load(one.identify_dir / "neurons.safetensors") for one in (recipe, alone))
    assert all(found.neurons(code).tolist() == expected.neurons(code).tolist() for code in CODES)
    assert not (recipe.identify_dir / "units").exists()
