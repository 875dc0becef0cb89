"""Keys of a recipe file set anew in its own text: comments, order and everything else stay.

After loading; for commands that find settings and are asked to keep them.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lape_ds.errors import UserError
from lape_ds.recipe.loading import recipe_file, validate
from lape_ds.recipe.source_text import RecipeDumper, RecipeLoader, parse_yaml
from lape_ds.resources import is_installed
from lape_ds.writing import write_text


def rewrite_recipe(path: str | Path, settings: Mapping[str, Any]) -> str:
    """Writes settings into a recipe file.

    Args:
        path: As given to `load_recipe`.
        settings: Dotted key -> plain value.

    Returns:
        The difference, as `diff -u` shows it; "" where the recipe says all that already.

    Raises:
        UserError: The file is not the user's to write, or it is written in a way that cannot be edited so.
    """
    file = recipe_file(Path(path))
    _check_writable(file, settings)
    before = file.read_text(encoding="utf-8")
    after = edited(before, settings, origin=str(file))
    write_text(file, after)
    old, new = (text.splitlines(keepends=True) for text in (before, after))
    return "".join(difflib.unified_diff(old, new, str(file), str(file), n=1))


def _check_writable(file: Path, settings: Mapping[str, Any]) -> None:
    told = " ".join(f"{key}={value}" for key, value in settings.items())
    if is_installed(file):
        raise UserError(
            f"{file} is shipped with lape-ds and is left as it is: copy it, or give on the command line {told}"
        )
    if (file.parent / "run.json").exists():
        raise UserError(
            f"{file} is the record of a run and is left as it is: give the recipe itself, or {told}"
        )
    if not (os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)):
        raise UserError(f"{file} cannot be written: copy it, or give on the command line {told}")


def edited(text: str, settings: Mapping[str, Any], *, origin: str) -> str:
    """A recipe's text with settings in it.

    Raises:
        UserError: What comes out does not say what was asked for (anchors and aliases can do that).
    """
    wanted = parse_yaml(text, origin=origin, line_numbers=True)
    for key, value in settings.items():
        wanted.put(key.split("."), value, origin=origin)
    try:
        for key, value in settings.items():
            text = _set(text, key.split("."), _scalar(value))
        now = parse_yaml(text, origin=origin, line_numbers=True).data
    except (yaml.YAMLError, UserError):
        now = None
    if now != wanted.data:
        told = " ".join(f"{key}={value}" for key, value in settings.items())
        raise UserError(f"{origin} is written in a way that cannot be edited key by key; set by hand {told}")
    validate(wanted)
    return text


def _scalar(value: Any) -> str:
    return yaml.dump(value, Dumper=RecipeDumper, default_flow_style=True).removesuffix("...\n").strip()


def _set(text: str, keys: list[str], value: str) -> str:
    """One key: its value is replaced where it stands, or it becomes the first of the section that is there."""
    node = yaml.compose(text, Loader=RecipeLoader)
    owner: yaml.ScalarNode | None = None
    while keys and isinstance(node, yaml.MappingNode):
        found = next((pair for pair in node.value if pair[0].value == keys[0]), None)
        if found is None:
            return _insert(text, node, owner, keys, value)
        owner, node, keys = found[0], found[1], keys[1:]
    assert node is not None
    if keys:  # a section without a key in it
        assert owner is not None
        return _into_empty(text, owner, node, keys, value)
    # An empty value has no place of its own: it stands right behind the colon.
    gap = " " if node.start_mark.index == node.end_mark.index else ""
    return text[: node.start_mark.index] + gap + value + text[node.end_mark.index :]


def _insert(
    text: str, node: yaml.MappingNode, owner: yaml.ScalarNode | None, keys: list[str], value: str
) -> str:
    if node.flow_style:
        at = node.start_mark.index + 1
        rest = ", " if node.value else " "
        return f"{text[:at]} {_flow(keys, value)}{rest}{text[at:].lstrip(' ')}"
    if owner is None:  # a section that is not there
        return f"{text.rstrip()}\n\n{_nested(keys, value, 0)}"
    at = _line_after(text, owner.end_mark.index)
    return text[:at] + _nested(keys, value, node.value[0][0].start_mark.column) + text[at:]


def _into_empty(text: str, owner: yaml.ScalarNode, node: yaml.Node, keys: list[str], value: str) -> str:
    rest = text[node.end_mark.index :]
    text = text[: node.start_mark.index].rstrip(" ") + rest  # `section: null` or `section: ~`
    at = _line_after(text, owner.end_mark.index)
    return text[:at] + _nested(keys, value, owner.start_mark.column + 2) + text[at:]


def _line_after(text: str, index: int) -> int:
    end = text.find("\n", index)
    return len(text) if end < 0 else end + 1


def _nested(keys: list[str], value: str, column: int) -> str:
    lines = [f"{' ' * (column + 2 * depth)}{key}:" for depth, key in enumerate(keys)]
    return "\n".join(lines) + f" {value}\n"


def _flow(keys: list[str], value: str) -> str:
    return f"{keys[0]}: {value}" if len(keys) == 1 else f"{keys[0]}: {{ {_flow(keys[1:], value)} }}"
