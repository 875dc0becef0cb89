"""Tables in Markdown, as cards, benchmarks and reports write them, and what all cards say.

Below every room.
"""

from __future__ import annotations

from collections.abc import Sequence

# Of a card's commands, for a reader who has not got them. The project has no page of its own that could be named.
INSTALL = "Install lape-ds first: `pip install .` in a checkout of it, with Python 3.11 or later."


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, num_left: int = 1) -> str:
    """A table whose first `num_left` columns are set to the left, the others to the right; no line break at its end.

    Args:
        headings: Of the columns.
        rows: Cells as they are: a pipe in one must be escaped.
        num_left: Columns of words.
    """
    sides = ["---"] * num_left + ["---:"] * (len(headings) - num_left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, sides, *rows))
