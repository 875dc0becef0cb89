"""Pictures of weight updates: by layer and projection, runs on top of each other; and the angles between runs.

After updates.py; need matplotlib and no display.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lape_ds.analysis.style import INK, MARKERS, colour_of, drawing, label_2_and_5, line_of, save_figure
from lape_ds.analysis.training.updates import FFN_PARTS, Directions, PartUpdate, Updates

_OTHERS = "other matrices"
_MEASURES: tuple[tuple[str, Callable[[PartUpdate], float | None]], ...] = (
    ("||dW|| / ||W||", lambda part: part.relative),
    ("share of weights changed", lambda part: part.share_changed),
    ("effective rank of dW", lambda part: part.effective_rank),
)


@drawing()
def draw_updates(results: Sequence[Updates], path: Path, *, format: str) -> None:
    """Draws relative size, share of changed weights and effective rank over layers into a file.

    Args:
        results: Of one run or several; a run has no point where it changed nothing.
        path: The file.
        format: `png` or `svg`.
    """
    columns = [name for name in FFN_PARTS if any(one.of(name) for one in results)]
    if any(_of_column(one, _OTHERS, layer) for one in results for layer in range(one.num_layers)):
        columns.append(_OTHERS)
    height = 7.5 if len(results) == 1 else 8
    figure = Figure(figsize=(1.2 + 2.7 * len(columns), height), layout="constrained")
    grid = figure.subplots(len(_MEASURES), len(columns), sharex=True, sharey="row", squeeze=False)
    for (title, measure), row in zip(_MEASURES, grid, strict=True):
        row[0].set_ylabel(title, fontsize="small")
        drawn = [
            _draw_line(axes, one, column, number, measure)
            for column, axes in zip(columns, row, strict=True)
            for number, one in enumerate(results)
        ]
        if any(drawn):  # what is set of one in a row, which share their scale, holds for all
            row[0].set_yscale("log")
            row[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            row[0].yaxis.set_minor_formatter(FuncFormatter(lambda value, _: label_2_and_5(value)))
        for axes in row:
            axes.tick_params(which="both", labelsize="small")
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for column, top, bottom in zip(columns, grid[0], grid[-1], strict=True):
        top.set_title(column, loc="left", fontsize="medium")
        bottom.set_xlabel("layer", fontsize="small")
    if len(results) > 1:
        figure.legend(
            loc="outside lower center",
            ncols=min(4, len(results)),
            handles=_handles(grid[0][0], results),
            fontsize="small",
        )
    of = results[0].subject.name if len(results) == 1 else f"{len(results)} runs"
    figure.suptitle(f"What training changed in the weights, {of}", x=0.01, ha="left", weight="bold")
    save_figure(figure, path, format=format)


def _of_column(one: Updates, column: str, layer: int) -> list[PartUpdate]:
    """What a column shows of one layer: a projection, or all other matrices, of those that changed."""
    return [
        part
        for part in one.parts
        if part.layer == layer
        and part.num_changed
        and (part.part == column or (column == _OTHERS and part.part not in (*FFN_PARTS, "vectors")))
    ]


def _draw_line(
    axes: Axes,
    one: Updates,
    column: str,
    number: int,
    measure: Callable[[PartUpdate], float | None],
) -> bool:
    """Whether there was a point."""
    points = [
        (layer, value)
        for layer in range(one.num_layers)
        if (parts := _of_column(one, column, layer))
        and (value := measure(PartUpdate.together(column, parts)))
    ]
    if points:
        axes.plot(
            [layer for layer, _ in points],
            [value for _, value in points],
            line_of(number),
            marker=MARKERS[number % len(MARKERS)],
            color=colour_of(number),
            markersize=3.5,
            linewidth=1.2,
        )
    return bool(points)


def _handles(axes: Axes, results: Sequence[Updates]) -> list:
    """For the legend, a line of each run, also of one that has none in these axes."""
    return [
        axes.plot(
            [],
            [],
            line_of(number),
            marker=MARKERS[number % len(MARKERS)],
            color=colour_of(number),
            markersize=3.5,
            label=one.subject.name,
        )[0]
        for number, one in enumerate(results)
    ]


@drawing()
def draw_directions(directions: Directions, path: Path, *, format: str) -> None:
    """Draws the matrix of cosines between the runs' changes, of all weights, into a file."""
    names, cosines = directions.names, directions.cosines()
    values = np.array([[np.nan if value is None else value for value in row] for row in cosines])
    side = 0.75 * len(names)
    figure = Figure(figsize=(side + 3.2, side + 2.2), layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["RdBu_r"].with_extremes(bad="0.93")
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, norm=Normalize(-1, 1))
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            ink = "white" if abs(value) > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    axes.set_title("cosine of dW of two runs, all weights", loc="left", fontsize="small", color=INK)
    figure.suptitle("Do the runs change the weights in the same direction?", x=0.01, ha="left", weight="bold")
    save_figure(figure, path, format=format)
