"""The picture of alignment, layer by layer: of one run or of several on top of each other.

After numbers.py; needs matplotlib and no display.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lape_ds.analysis.alignment.numbers import (
    MEAN_NAMES,
    MEASURE_NAMES,
    SHORT_LIST,
    Alignment,
    BeforeAfter,
)
from lape_ds.analysis.style import INK, colour_of, drawing, line_of, save_figure
from lape_ds.languages import find_language


@drawing()
def draw_alignment(results: Sequence[Alignment], path: Path, *, format: str) -> None:
    """Draws four measures, with English and with the others, over layers into a file.

    Args:
        results: Of one run, or of several.
        path: The file.
        format: `png` or `svg`.
    """
    rows = [name for name in MEAN_NAMES if any(name in one.means for one in results)]
    figure = Figure(figsize=(12, 0.9 + 2.7 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(SHORT_LIST), sharex=True, sharey="col", squeeze=False)
    for row, name in enumerate(rows):
        for column, measure in enumerate(SHORT_LIST):
            axes = panels[row][column]
            _draw_measure(axes, results, name, measure)
            if row == 0:
                axes.set_title(MEASURE_NAMES[measure], loc="left", fontsize="medium")
            if row == len(rows) - 1:
                axes.set_xlabel("layer (0: embeddings)", fontsize="small")
        panels[row][0].set_ylabel(MEAN_NAMES[name], fontsize="small")
    figure.legend(handles=_legend(results), loc="outside lower center", ncols=4, fontsize="small")
    trained = ", ".join(
        sorted({find_language(code).name for one in results for code in one.subject.languages})
    )
    name = results[0].subject.name if len(results) == 1 else f"{len(results)} runs"
    figure.suptitle(f"Alignment of {trained} with other languages, {name}", x=0.01, ha="left", weight="bold")
    save_figure(figure, path, format=format)


def _draw_measure(axes: Axes, results: Sequence[Alignment], name: str, measure: str) -> None:
    drawn = [(number, one.means[name][measure]) for number, one in enumerate(results) if name in one.means]
    for base, chance in dict.fromkeys((found.before, found.chance_before) for _, found in drawn):
        layers = range(len(base))
        axes.plot(layers, chance, ":", color=INK, linewidth=1.1, zorder=1)
        axes.plot(layers, base, "--", color=INK, linewidth=1.4, zorder=2)
    for number, found in drawn:
        _draw_run(axes, found, number)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.tick_params(labelsize="small")
    axes.grid(axis="y")


def _draw_run(axes: Axes, found: BeforeAfter, number: int) -> None:
    """After training, with the interval of the change around it where that is known."""
    layers, widths = range(len(found.after)), [nan if width is None else width for width in found.half_width]
    low = [value - width for value, width in zip(found.after, widths, strict=True)]
    high = [value + width for value, width in zip(found.after, widths, strict=True)]
    axes.fill_between(layers, low, high, color=colour_of(number), alpha=0.25, linewidth=0, zorder=2)
    axes.plot(layers, found.after, line_of(number), color=colour_of(number), linewidth=1.8, zorder=3)


def _legend(results: Sequence[Alignment]) -> list[Line2D | Patch]:
    looks: list[dict[str, Any]] = [
        {"color": colour_of(number), "linestyle": line_of(number), "label": one.subject.name}
        for number, one in enumerate(results)
    ]
    runs = [Line2D([], [], **look) for look in looks]
    base = Line2D([], [], color=INK, linestyle="--", label="before training")
    chance = Line2D([], [], color=INK, linestyle=":", label="shuffled pairs")
    band = Patch(color=INK, alpha=0.25, linewidth=0, label="95 % of the change")
    return [base, chance, band, *runs]
