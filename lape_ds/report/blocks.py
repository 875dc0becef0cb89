"""What a section of the page is made of: paragraphs, tables, pictures, and what is missing.

After numbers; the template writes each as HTML. Every cell and part is text or has `__html__`, as the numbers have.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup

Tone = Literal["", "better", "worse"]
# Of a comparison's verdicts; the others have none.
TONES: dict[str, Tone] = {"better": "better", "worse": "worse"}


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        content: Text or what has `__html__`; empty where there is nothing to say.
        tone: Whether the number is good or bad news; its sign says the same without colour.
        share: -1 to 1: the length of a bar behind the number; None without one.
        heat: -1 to 1: the tint of the cell, above 0 warm and below cool; None without one.
        span: Columns that it takes.
        is_word: Set to the left.
    """

    content: Any
    tone: Tone = ""
    share: float | None = None
    heat: float | None = None
    span: int = 1
    is_word: bool = False


@dataclass(frozen=True)
class Row:
    """One row: its heading and cells.

    Attributes:
        heading: Of the row.
        cells: Each a `Cell`, or what stands in one.
        is_total: Set apart: a mean or a sum of the others.
        is_main: The row that the page is about.
    """

    heading: Any
    cells: Sequence[Any]
    is_total: bool = False
    is_main: bool = False

    def all_cells(self) -> list[Cell]:
        """Every one a cell."""
        return [cell if isinstance(cell, Cell) else Cell(cell) for cell in self.cells]


@dataclass(frozen=True)
class Table:
    """A table with a caption; wide ones scroll in their own box.

    Attributes:
        caption: What it shows, and in which unit.
        headings: Of the columns, the first of the rows' headings.
        rows: In order.
        words: Numbers of columns that hold words, from 0 for the first behind the headings.
        is_folded: Behind its caption, to be opened.
        detail: A lighter line below the caption: how it was measured.
    """

    caption: Any
    headings: Sequence[Any]
    rows: Sequence[Row]
    words: Sequence[int] = ()
    is_folded: bool = False
    detail: Any = ""
    kind: str = field(default="table", init=False)


@dataclass(frozen=True)
class Picture:
    """A picture, and its numbers as tables beside it.

    Attributes:
        svg: Whole, with title and description.
        caption: Below it.
        data: Shown when opened.
    """

    svg: Markup
    caption: Any
    data: Sequence[Table]
    kind: str = field(default="picture", init=False)


@dataclass(frozen=True)
class Prose:
    """A paragraph.

    Attributes:
        text: Words and numbers.
        is_note: In small type: how to read what stands above.
        is_warning: Set apart: what stands below is not what it seems.
    """

    text: Any
    is_note: bool = False
    is_warning: bool = False
    kind: str = field(default="prose", init=False)


@dataclass(frozen=True)
class Missing:
    """What the folders do not hold, and what makes it.

    Attributes:
        what: In words.
        command: For a shell.
    """

    what: Any
    command: str
    kind: str = field(default="missing", init=False)


def command(*words: str | Path) -> str:
    """A command as a shell takes it; paths relative to the current folder where they lie in it.

    Example: command("lape-ds", "export", Path("/home/me/runs/x/train/full"))
    """
    here = Path.cwd()
    return shlex.join(
        str(word.relative_to(here) if isinstance(word, Path) and word.is_relative_to(here) else word)
        for word in words
    )


Block = Table | Picture | Prose | Missing


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        name: For links, e.g. `gains`.
        title: The heading, also in the list of sections.
        blocks: In order.
    """

    name: str
    title: Any
    blocks: Sequence[Block]

    @property
    def is_empty(self) -> bool:
        """Whether nothing but what is missing stands in it."""
        return all(isinstance(block, Missing) for block in self.blocks)


@dataclass(frozen=True)
class Figure:
    """One of the few numbers at the top of the page.

    Attributes:
        label: What it is.
        value: The number.
        detail: A line below.
        tone: Good or bad news.
    """

    label: str
    value: Any
    detail: Any
    tone: Tone = ""
