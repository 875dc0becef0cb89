"""What `lape-ds identify` tells before, and instead of, starting ranks; needs no model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lape_ds.distributed import divided
from lape_ds.errors import UserError
from lape_ds.identification.command import _stopped, run_identification  # pyright: ignore[reportPrivateUsage]
from lape_ds.recipe import freeze_recipe
from tests.identification.making import LLAMA, make_recipe, write_recipe

UNMADE = {"path": "made", "create": {"llama": LLAMA, "pretrain": {"method": "full"}}}


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of two ranks that must not be started, and of a model whose folder has nothing but a config."""
    monkeypatch.setattr(divided, "launch_ranks", lambda *_: pytest.fail("ranks were started"))
    monkeypatch.setattr(divided, "local_slots", lambda number: [""] * number)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return write_recipe(make_recipe(tmp_path, model), tmp_path / "recipe")


def test_a_folder_of_another_recipe(recipe_file: Path, tmp_path: Path) -> None:
    other = make_recipe(tmp_path, tmp_path / "model", identify={"context_length": 32})
    (other.identify_dir / "counts").mkdir(parents=True)
    freeze_recipe(other, other.identify_dir, sections=())
    with pytest.raises(UserError, match=r"identify.context_length is None now, 32 there"):
        run_identification(str(recipe_file), ["launch.num_ranks=2"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.path=./no/model", r"model.path=./no/model: no config.json there"),
        (f"model={json.dumps(UNMADE)}", "model.path=made is not made yet .* run `lape-ds pretrain`"),
    ],
)
def test_no_model(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_identification(str(recipe_file), ["launch.num_ranks=2", override])


def test_ranks_start_where_nothing_is_wrong(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[object]()
    monkeypatch.setattr(divided, "launch_ranks", lambda *given: started.append(given) or 0)
    assert run_identification(str(recipe_file), ["launch.num_ranks=2"]) == 0
    assert started == [("identify", [str(recipe_file), "launch.num_ranks=2"], ["", ""])]


def test_counts_are_promised_only_where_there_are_some(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, tmp_path / "model")
    assert _stopped(None) == _stopped(recipe) == "before anything was counted; the same command goes on"
    unit = recipe.counting_dir / "units" / "mlt_Latn" / "0-4.safetensors"
    unit.parent.mkdir(parents=True)
    assert _stopped(recipe).startswith("before anything")
    unit.touch()
    assert _stopped(recipe) == "while counting; what is counted is kept, the same command goes on"
