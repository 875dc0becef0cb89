"""The recipe in a folder: refuses other settings where there is output, tells of the last run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lape_ds.errors import UserError
from lape_ds.recipe import Recipe, check_frozen, freeze_recipe, load_recipe

SECTIONS = ("model", "train.epochs")


def make(**train: object) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "x",
            "output_dir": "o",
            "languages": {"target": "mt", "identify": ["mt", "af"]},
            "model": {"path": "m"},
            "corpus": {"source": {"kind": "cldr"}},
            "train": train,
        }
    )


def test_writes_a_recipe_that_loads_back(tmp_path: Path) -> None:
    check_frozen(make(), tmp_path / "run", sections=SECTIONS)
    assert not (tmp_path / "run").exists()
    freeze_recipe(make(), tmp_path / "run", sections=SECTIONS)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]
    assert load_recipe(tmp_path / "run") == make()


@pytest.mark.parametrize("step", [check_frozen, freeze_recipe])
def test_refuses_other_settings_where_there_is_output(tmp_path: Path, step) -> None:
    freeze_recipe(make(), tmp_path, sections=SECTIONS)
    (tmp_path / "metrics.jsonl").touch()
    before = (tmp_path / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match=r"another recipe: train\.epochs is 5\.0 now, 1\.0 there"):
        step(make(epochs=5), tmp_path, sections=SECTIONS)
    assert (tmp_path / "recipe.yaml").read_bytes() == before


def test_tells_of_the_last_run(tmp_path: Path) -> None:
    """What does not decide the folder's content may change, and is then written down."""
    freeze_recipe(make(), tmp_path, sections=SECTIONS)
    (tmp_path / "metrics.jsonl").touch()
    other = make(checkpoint_every_steps=7)
    check_frozen(other, tmp_path, sections=SECTIONS)
    assert load_recipe(tmp_path) == make()
    freeze_recipe(other, tmp_path, sections=SECTIONS)
    assert load_recipe(tmp_path) == other


def test_recipe_without_output_binds_nobody(tmp_path: Path) -> None:
    """A run that was refused, or killed, before it wrote anything: the mended recipe takes the folder."""
    freeze_recipe(make(), tmp_path, sections=SECTIONS)
    (tmp_path / "lock").touch()
    (tmp_path / ".state.json.12.tmp").touch()
    check_frozen(make(epochs=5), tmp_path, sections=SECTIONS)
    freeze_recipe(make(epochs=5), tmp_path, sections=SECTIONS)
    assert load_recipe(tmp_path) == make(epochs=5)
