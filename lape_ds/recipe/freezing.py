"""The resolved recipe, kept in the folder of what was made with it.

After loading, before a stage writes anything: a folder of other settings is refused and left as it is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from lape_ds.errors import UserError
from lape_ds.recipe.loading import validate
from lape_ds.recipe.sections import Recipe
from lape_ds.recipe.source_text import RecipeDumper, read_yaml

_ABSENT = "absent"


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that `load_recipe` reads back to an equal one."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)


def freeze_recipe(recipe: Recipe, folder: Path, *, sections: tuple[str, ...]) -> None:
    """Writes `folder/recipe.yaml`, or compares with the one that is there.

    Args:
        recipe: What the stage is about to run.
        folder: The stage's output folder; made if missing. Call this on one rank only.
        sections: Keys that decide this folder's content, e.g. `("model", "train.method")`; the others may differ from the
            frozen recipe.

    Raises:
        UserError: The folder holds output of other settings; names the first that differs and both values.
    """
    path = folder / "recipe.yaml"
    if path.exists():
        _compare(recipe, validate(read_yaml(path)), path, sections)
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "recipe.yaml.tmp"
    temporary.write_text(to_yaml(recipe), encoding="utf-8")
    os.replace(temporary, path)


def _compare(recipe: Recipe, frozen: Recipe, path: Path, sections: tuple[str, ...]) -> None:
    now, then = recipe.model_dump(mode="json"), frozen.model_dump(mode="json")
    for section in sections:
        difference = _first_difference(section, _value(now, section), _value(then, section))
        if difference is not None:
            key, new, old = difference
            raise UserError(
                f"{path.parent} holds output of another recipe: {key} is {new} now, {old} there; "
                "set another output_dir (or train.run_name for a training run), or the old value"
            )


def _value(content: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        content = content[part]
    return content


def _first_difference(key: str, now: Any, then: Any) -> tuple[str, Any, Any] | None:
    """Depth first: dotted key and both values."""
    if not (isinstance(now, dict) and isinstance(then, dict)):
        return None if now == then else (key, now, then)
    for name in dict.fromkeys([*now, *then]):
        difference = _first_difference(f"{key}.{name}", now.get(name, _ABSENT), then.get(name, _ABSENT))
        if difference is not None:
            return difference
    return None
