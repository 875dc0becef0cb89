"""The commands of docs/: every line of their ```bash blocks, with its place."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_VARIABLE = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True)
class Command:
    """One command of a page.

    Attributes:
        place: `page.md:line`.
        text: As it stands there, without comment.
        words: As the shell would take it apart.
        environment: Variables that stand before it.
    """

    place: str
    text: str
    words: tuple[str, ...]
    environment: dict[str, str]


def commands(page: Path) -> Iterator[Command]:
    """Those of a page, in order; what `&&` joins is two."""
    text = page.read_text(encoding="utf-8")
    for block in _FENCE.finditer(text):
        first = text.count("\n", 0, block.start(1)) + 1
        for number, line in enumerate(block[1].splitlines()):
            assert not line.endswith("\\"), (
                f"{page.name}:{first + number}: a command goes on in the next line"
            )
            for part in line.split(" && "):
                if words := shlex.split(part, comments=True):
                    yield _command(f"{page.name}:{first + number}", part.strip(), words)


def _command(place: str, text: str, words: list[str]) -> Command:
    environment: dict[str, str] = {}
    while _VARIABLE.match(words[0]):
        name, _, environment[name] = words.pop(0).partition("=")
    return Command(place, text, tuple(words), environment)
