"""The resolved recipe, kept in the folder of what was made with it.

After loading, before a stage writes anything: a folder with output of other settings is refused and left as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lape_ds.errors import UserError
from lape_ds.recipe.loading import validate
from lape_ds.recipe.sections import Recipe
from lape_ds.recipe.source_text import RecipeDumper, read_yaml
from lape_ds.writing import write_text

_ABSENT = "absent"


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that `load_recipe` reads back to an equal one."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)


def check_frozen(recipe: Recipe, folder: Path, *, sections: tuple[str, ...]) -> None:
    """Compares with the recipe that is frozen in `folder`, if there is output of it; writes nothing.

    Args:
        recipe: What the stage is about to run.
        folder: The stage's output folder.
        sections: Keys that decide this folder's content, e.g. `("model", "train.method")`; the others may differ from the
            frozen recipe.

    Raises:
        UserError: The folder holds output of other settings; names the first that differs and both values.
    """
    path = folder / "recipe.yaml"
    if path.exists() and _holds_output(folder):
        _compare(recipe, validate(read_yaml(path)), path, sections)


def freeze_recipe(recipe: Recipe, folder: Path, *, sections: tuple[str, ...]) -> None:
    """Writes `folder/recipe.yaml`, after comparing with the one that is there: it tells of the last run.

    A stage calls `check_frozen` at its start, and this when nothing is left to refuse: a mended recipe must not meet what a
    refused one left behind. On one rank only. Arguments and errors are those of `check_frozen`; the folder is made.
    """
    check_frozen(recipe, folder, sections=sections)
    write_text(folder / "recipe.yaml", to_yaml(recipe))


def _holds_output(folder: Path) -> bool:
    """Whether a run got so far that its settings matter: there is more than its recipe, a lock and temporary files."""
    return any(
        entry.name not in ("recipe.yaml", "lock") and not entry.name.startswith(".")
        for entry in folder.iterdir()
    )


def _compare(recipe: Recipe, frozen: Recipe, path: Path, sections: tuple[str, ...]) -> None:
    now, then = recipe.model_dump(mode="json"), frozen.model_dump(mode="json")
    for section in sections:
        difference = first_difference(section, _value(now, section), _value(then, section))
        if difference is not None:
            key, new, old = difference
            raise UserError(
                f"{path.parent} holds output of another recipe: {key} is {new} now, {old} there; "
                "set another output_dir (or train.run_name for a training run), or the old value"
            )


def _value(content: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        if content is None:  # an optional section that this recipe does without
            return None
        content = content[part]
    return content


def first_difference(key: str, now: Any, then: Any) -> tuple[str, Any, Any] | None:
    """The first key, depth first, under which two contents of recipes differ: dotted, with both values; None if they do not."""
    if not (isinstance(now, dict) and isinstance(then, dict)):
        return None if now == then else (key, now, then)
    for name in dict.fromkeys([*now, *then]):
        difference = first_difference(f"{key}.{name}", now.get(name, _ABSENT), then.get(name, _ABSENT))
        if difference is not None:
            return difference
    return None
