"""YAML of a recipe and `key=value` overrides → plain data that remembers where each key was written.

Before validation on the recipe's way. YAML as version 1.2 reads it: `no` is a string (Norwegian), `1e-4` is a
number, `010` and `1:30` are strings; no tags, no merge keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lape_ds.errors import UserError

KeyPath = tuple[str | int, ...]


class RecipeLoader(yaml.SafeLoader):
    """Reads plain scalars by the rules below instead of YAML 1.1's."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own way


class RecipeDumper(yaml.SafeDumper):
    """Quotes exactly the strings that `RecipeLoader` would read as something else."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own way

    def ignore_aliases(self, data: Any) -> bool:
        """No anchors: a frozen recipe is to be read by people."""
        return True


_NUMBER = list("-+0123456789.")
_RULES = {  # tried in this order; a number has no leading zero
    "null": (r"~|null|Null|NULL|", [*"~nN", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9_]*)", _NUMBER),
    "float": (
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9_]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        _NUMBER,
    ),
}
for _tag, (_pattern, _first) in _RULES.items():
    for _class in (RecipeLoader, RecipeDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


@dataclass
class SourceText:
    """Plain data and the place of every key.

    Attributes:
        data: What the YAML and the overrides say together.
        places: Key path -> `file:line` or the override's own text.
    """

    data: Any
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, keys: KeyPath) -> str:
        """Where `keys`, or the nearest part above it, was written."""
        while keys and keys not in self.places:
            keys = keys[:-1]
        return self.places[keys]

    def set_key(self, override: str) -> None:
        """Applies one `key=value`; a dotted key that is not there yet is made.

        Raises:
            UserError: Not of this form, a value that is not YAML, or a key below what is no mapping.
        """
        name, equals, value = override.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise UserError(
                f"override {override!r} must read key=value, e.g. train.optimizer.learning_rate=1e-4"
            )
        parsed = parse_yaml(value, origin=f"override {override!r}", line_numbers=False)
        self.put(keys, parsed.data, origin=f"override {override!r}")

    def put(self, keys: Sequence[str], value: Any, *, origin: str) -> None:
        """Gives the key at `keys` a value; mappings above it that are not there yet are made.

        Args:
            keys: From the top of the recipe.
            value: Plain data.
            origin: Its place, for errors.

        Raises:
            UserError: A key above it is no mapping.
        """
        here = self.data
        for depth, key in enumerate(keys[:-1]):
            if here.get(key) is None:
                here[key] = {}
                self.places.setdefault(tuple(keys[: depth + 1]), origin)  # a key of the file's keeps its line
            here = here[key]
            if not isinstance(here, dict):
                raise UserError(
                    f"{origin}: {'.'.join(keys[: depth + 1])} is {here!r}, which has no keys; "
                    "override it as a whole"
                )
        here[keys[-1]] = value
        stale = [path for path in self.places if path[: len(keys)] == tuple(keys)]
        for path in stale:
            del self.places[path]
        self.places[tuple(keys)] = origin


def read_yaml(path: Path) -> SourceText:
    """Reads a recipe file.

    Raises:
        UserError: No such file, not UTF-8, not YAML, a key given twice, or no mapping at the top.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no recipe {path}: give the path of a YAML file, see recipes/") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder without recipe.yaml: give a recipe or a run folder") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from None
    source = parse_yaml(text, origin=str(path), line_numbers=True)
    if not isinstance(source.data, dict):
        raise UserError(
            f"{path} must hold keys such as `name:` and `languages:`, see recipes/quickstart.yaml"
        )
    return source


def parse_yaml(text: str, *, origin: str, line_numbers: bool) -> SourceText:
    """Parses YAML text; `origin` (with the line, where asked) goes into errors and places."""
    builder = _Builder(origin, line_numbers)
    try:
        node = yaml.compose(text, Loader=RecipeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(str(error.problem or error.context).split())
        raise UserError(f"{builder.at(mark.line if mark else 0)} is not YAML: {what}") from None
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise UserError(f"{origin} is not YAML: {str(error).splitlines()[0]}") from None
    builder.places[()] = builder.at(0)
    data = None if node is None else builder.build(node, (), ())
    return SourceText(data, builder.places)


@dataclass
class _Builder:
    """YAML nodes -> plain data, noting places on the way."""

    origin: str
    line_numbers: bool
    places: dict[KeyPath, str] = field(default_factory=dict)

    def at(self, line: int) -> str:
        """The place of a line, counted from 0."""
        return f"{self.origin}:{line + 1}" if self.line_numbers else self.origin

    def build(self, node: yaml.Node, keys: KeyPath, above: tuple[int, ...]) -> Any:
        """`above` holds the nodes that hold this one, for an alias may lead back to them."""
        place = self.at(node.start_mark.line)
        self.places.setdefault(keys, place)
        if id(node) in above:
            raise UserError(f"{place}: an alias refers to what holds it")
        if not re.fullmatch(r"tag:yaml\.org,2002:(null|bool|int|float|str|map|seq)", node.tag):
            raise UserError(f"{place}: the YAML tag {node.tag!r} is not allowed in a recipe")
        above = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys, above)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*keys, index), above) for index, child in enumerate(node.value)]
        try:
            return RecipeLoader("").construct_object(node)
        except (ValueError, KeyError, IndexError):  # an explicit tag on something else, e.g. `!!int x`
            raise UserError(f"{place}: {node.value!r} does not fit its YAML tag {node.tag!r}") from None

    def _mapping(self, node: yaml.MappingNode, keys: KeyPath, above: tuple[int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self.at(key_node.start_mark.line)
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{place}: a key must be a word, not a list or a mapping")
            key = key_node.value
            if key in result:
                raise UserError(f"{place}: {'.'.join(map(str, (*keys, key)))} is given twice; remove one")
            self.places[*keys, key] = place
            result[key] = self.build(value_node, (*keys, key), above)
        return result
