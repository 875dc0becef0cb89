"""How pictures look: colours, markers, ink, and how a figure becomes a file.

Below every picture; needs matplotlib and no display.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.figure import Figure

# Eight colours that people with any colour vision tell apart. Source: Okabe and Ito, Color Universal Design, 2008, but for two:
# their yellow is too pale on white for a line, their black is lost on a dark page; violet and middle grey stand in their place.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#767676", "#E69F00", "#56B4E9", "#9467BD")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
LINES: tuple[Literal["-", "--", "-.", ":"], ...] = ("-", "--", "-.", ":")

# Of words and axes: as far from white as from black (contrast 4.5 both ways), so that an SVG can be read on either.
INK = "#767676"
_INK_OF = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")


@contextmanager
def drawing() -> Iterator[None]:
    """Within it, figures are made and saved in the style that can be read on white and on black."""
    settings: dict[Any, Any] = {
        **dict.fromkeys(_INK_OF, INK),
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "grid.color": INK,
        "grid.alpha": 0.25,
    }
    with rc_context(settings):
        yield


def save_figure(figure: Figure, path: Path, *, format: str) -> None:
    """Writes a picture, `png` (on white) or `svg` (on whatever it lies, its words as words); the same data give the same file."""
    svg = format == "svg"
    with rc_context({"svg.hashsalt": "lape-ds", "svg.fonttype": "none"}):
        figure.savefig(
            path, format=format, dpi=160, transparent=svg, metadata={"Date": None} if svg else None
        )


def colour_of(number: int) -> str:
    """The colour of the so-manieth of some things; after eight they come again."""
    return COLOURS[number % len(COLOURS)]


def line_of(number: int) -> Literal["-", "--", "-.", ":"]:
    """A dash pattern, another one for each round of colours."""
    return LINES[number // len(COLOURS) % len(LINES)]


def label_2_and_5(value: float) -> str:
    """Of a logarithmic axis' ticks between powers of ten, those at 2 and 5 times one; the others are not labelled."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""


def spread_out(heights: Sequence[float], *, gap: float) -> list[float]:
    """Moves heights apart until neighbours are `gap` from each other, as little as possible and in their order.

    Least squares by pooling: what is too near is laid out around its common middle, until no two such groups touch.
    """
    groups: list[tuple[list[int], float]] = []  # indices from below, and the height of the group's middle
    for index in sorted(range(len(heights)), key=lambda index: heights[index]):
        members, middle = [index], heights[index]
        while groups:
            below, below_middle = groups[-1]
            if middle - below_middle >= gap * (len(below) + len(members)) / 2:
                break
            groups.pop()
            members = below + members
            middle = (below_middle * len(below) + middle * (len(members) - len(below))) / len(members)
        groups.append((members, middle))
    placed = [0.0] * len(heights)
    for members, middle in groups:
        for number, index in enumerate(members):
            placed[index] = middle + gap * (number - (len(members) - 1) / 2)
    return placed
