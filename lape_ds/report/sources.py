"""What the page reads, and how each part of it remembers where it was read.

First of the report: everything that the page shows is a `Place` in a JSON file, so that a number cannot come onto the page
without its source. A source is written `<file relative to the page>#<JSON pointer, RFC 6901>`, e.g. `run.json#/parameters`; of
`metrics.jsonl`, whose lines are documents of their own, the number of the line (from 1) and the pointer in it:
`metrics.jsonl#12/loss`. `*` as a part means every item that has the rest (there is no key of that name in what lape-ds writes).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lape_ds.errors import UserError

_SAFE = "/~*+,:@"  # beside letters, digits and _.-; no braces, which formulas use


@dataclass(frozen=True)
class Place:
    """A part of a JSON file, with what stands there.

    Attributes:
        content: What stands there: a mapping, a list, a number, a text, or None.
        file: The file, relative to the page, percent-encoded as a URL is.
        pointer: Where in it, as RFC 6901 has it.
    """

    content: Any
    file: str
    pointer: str = ""

    @property
    def source(self) -> str:
        """E.g. `train/full/run.json#/trained_parameters`."""
        return _source(self.file, self.pointer)

    def __getitem__(self, key: str | int) -> Place:
        return Place(self.content[key], self.file, f"{self.pointer}/{_escaped(str(key))}")

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def __len__(self) -> int:
        return len(self.content)

    def __iter__(self) -> Iterator[Place]:
        """The items of a list."""
        return (self[index] for index in range(len(self.content)))

    def names(self) -> list[str]:
        """Of a mapping."""
        return list(self.content)

    def items(self) -> list[tuple[str, Place]]:
        """Of a mapping."""
        return [(key, self[key]) for key in self.content]

    def get(self, *keys: str | int) -> Place | None:
        """Further in; None where a key is not there or leads to null."""
        found = self
        for key in keys:
            there = isinstance(found.content, list) or (
                isinstance(found.content, dict) and key in found.content
            )
            if not there:
                return None
            found = found[key]
        return None if found.content is None else found

    def every(self, *keys: str) -> Places:
        """What all items of this list or mapping have under `keys`, `*` standing for every item of a part."""
        pointer = "/".join([self.pointer, "*", *(key if key == "*" else _escaped(key) for key in keys)])
        return Places(list(_expand(self.content, ("*", *keys))), self.file, pointer)


@dataclass(frozen=True)
class Places:
    """Many parts of one file, named by a pointer with `*`.

    Attributes:
        contents: What stands in each, in the file's order.
        file: As of a place.
        pointer: With `*`.
    """

    contents: list[Any]
    file: str
    pointer: str

    @property
    def source(self) -> str:
        """E.g. `metrics.jsonl#*/seconds`."""
        return _source(self.file, self.pointer)


def _source(file: str, pointer: str) -> str:
    within = quote(pointer, safe=_SAFE)
    return f"{file}#{within.removeprefix('/') if file.endswith('.jsonl') else within}"


def _expand(content: Any, keys: tuple[str, ...]) -> Iterator[Any]:
    if not keys:
        yield content
    elif keys[0] == "*":
        for item in content.values() if isinstance(content, dict) else content:
            yield from _expand(item, keys[1:])
    elif isinstance(content, dict) and content.get(keys[0]) is not None:
        yield from _expand(content[keys[0]], keys[1:])


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


@dataclass
class Reader:
    """Reads files for one page and keeps which they were.

    Attributes:
        folder: Of the page.
        read: Files read so far, relative to the page, percent-encoded, in order.
    """

    folder: Path
    read: dict[str, None] = field(default_factory=dict)

    def json(self, path: Path) -> Place | None:
        """A JSON file; None where it is not there.

        Raises:
            UserError: It is no JSON.
        """
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); delete it and make it anew") from None
        return Place(content, self._name(path))

    def lines(self, path: Path) -> Place | None:
        """A file of JSON lines as a mapping from the lines' numbers, from 1; None where it is not there.

        A last line without its end is being written, and is left out.

        Raises:
            UserError: A line is no JSON.
        """
        if not path.is_file():
            return None
        whole = path.read_text(encoding="utf-8").splitlines(keepends=True)
        content = {}
        for number, line in enumerate(whole, start=1):
            if not line.endswith("\n"):
                break
            try:
                content[str(number)] = json.loads(line)
            except ValueError:
                raise UserError(
                    f"{path}:{number} is damaged (no JSON); train into another run folder"
                ) from None
        return Place(content, self._name(path))

    def text(self, path: Path) -> str | None:
        """Any other text, such as a picture; None where it is not there."""
        if not path.is_file():
            return None
        self._name(path)
        return path.read_text(encoding="utf-8")

    def _name(self, path: Path) -> str:
        name = quote(Path(os.path.relpath(path.resolve(), self.folder.resolve())).as_posix(), safe=_SAFE)
        self.read[name] = None
        return name
