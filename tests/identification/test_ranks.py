"""However many ranks count, and whatever happens to them, the files of counts say and hold the same."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from lape_ds.errors import UserError
from lape_ds.identification import share
from lape_ds.identification.stage import count_part, identify
from lape_ds.neurons.merging import merge_counts
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import Recipe
from tests.identification.making import CODES, counts_of, make_recipe, write_recipe
from tests.processes import ends_of_ranks, rank_server, run_ranks

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


def test_killed_again_and_again(tmp_path: Path, model_folder: Path, alone: Recipe) -> None:
    """At moments further and further on: within writing, between adding a unit's file and deleting it, while selecting."""
    cache = {"cache_dir": str(alone.output_dir / "corpus")}
    recipe = make_recipe(tmp_path, model_folder, identify=SMALL_SHARDS, corpus=cache)
    path = write_recipe(recipe, tmp_path)
    moment, codes = 4, list[int]()
    while 0 not in codes:
        log = tmp_path / f"{moment}.log"
        rank = rank_server().start(
            "tests.identification.killed_worker", [str(path), str(moment)], environment={}, log=log
        )
        codes.append(rank.wait(60))
        assert codes[-1] in (0, -signal.SIGKILL), log.read_text()
        moment += 7
    assert len(codes) > 4
    assert counts_of(recipe) == counts_of(alone)
    assert not (recipe.identify_dir / "units").exists()
    assert not list(recipe.identify_dir.rglob(".*"))


def test_a_failing_rank_ends_all_and_the_same_command_goes_on(
    tmp_path: Path, model_folder: Path, alone: Recipe
) -> None:
    """Here one that cannot read the counts of another run."""
    recipe = make_recipe(tmp_path, model_folder, identify=SMALL_SHARDS)
    path = write_recipe(recipe, tmp_path)
    damaged = recipe.identify_dir / "counts" / f"{CODES[0]}.safetensors"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("no safetensors")
    ends = ends_of_ranks("lape_ds.cli", ["identify", str(path)], world_size=2)
    errors = [line for _, log in ends for line in log.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, ends
    assert f"{CODES[0]}.safetensors" in errors[0]
    damaged.unlink()
    run_ranks("lape_ds.cli", ["identify", str(path)], world_size=2)
    assert counts_of(recipe) == counts_of(alone)


def test_parts_merge_to_the_whole(
    tmp_path: Path, model_folder: Path, alone: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        recipe = make_recipe(tmp_path, model_folder, identify=SMALL_SHARDS | {"part": f"{number}/3"})
        count_part(recipe)
        assert not (recipe.identify_dir / "neurons.safetensors").exists()
    recipe = make_recipe(tmp_path, model_folder, identify=SMALL_SHARDS)
    parts = [recipe.identify_dir / f"part-{number}-of-3" / "counts" for number in range(3)]
    merge_counts(parts, recipe.identify_dir / "counts")
    assert counts_of(recipe) == counts_of(alone)
    monkeypatch.setattr(share, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    identify(recipe)
    assert counts_of(recipe) == counts_of(alone)
    with pytest.raises(UserError, match="share text"):
        merge_counts([parts[0], parts[0]], tmp_path / "twice")


def test_a_truncated_unit_is_told_and_counted_again(
    tmp_path: Path, model_folder: Path, alone: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    cache = {"cache_dir": str(alone.output_dir / "corpus")}
    recipe = make_recipe(tmp_path, model_folder, identify=SMALL_SHARDS, corpus=cache)
    whole = (alone.identify_dir / "counts" / f"{CODES[0]}.safetensors").read_bytes()
    unit = recipe.identify_dir / "units" / CODES[0] / "0-1.safetensors"
    unit.parent.mkdir(parents=True)
    unit.write_bytes(whole[: len(whole) // 2])
    identify(recipe)
    assert f"{unit} is not a readable" in caplog.text
    assert counts_of(recipe) == counts_of(alone)
    assert not (recipe.identify_dir / "units").exists()
