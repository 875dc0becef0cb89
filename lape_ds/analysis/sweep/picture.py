"""The picture of a sweep: gain against forgetting, every method's points and frontier.

After the frontiers; needs matplotlib and no display.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lape_ds.analysis.style import COLOURS, INK, LINES, MARKERS, drawing, save_figure, spread_out
from lape_ds.analysis.sweep.frontier import MethodFrontier
from lape_ds.analysis.sweep.results import SweepResults

_LABEL_GAP = 0.05  # of the axes' height
_LABELS_AT = 1.04  # of the axes' width


@drawing()
def draw_frontier(results: SweepResults, path: Path, *, format: str) -> None:
    """Draws the picture into a file.

    Args:
        results: Of the sweep.
        path: The file.
        format: `png` or `svg`.
    """
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color=INK, alpha=0.4, linewidth=0.8, zorder=0)
    axes.axvline(0, color=INK, alpha=0.4, linewidth=0.8, zorder=0)
    drawn = [method for method in results.methods if method.mean is not None]
    scale_gentle_end(axes, drawn)
    looks = looks_of([method.name for method in drawn])
    for method in drawn:
        draw_method(axes, method, looks[method.name])
    _label(axes, drawn, looks)
    axes.set_xlabel(
        f"mean change of the {len(results.others)} other languages, bits per byte   (right: more forgotten)"
    )
    axes.set_ylabel(f"gain on {results.target_names}, bits per byte   (up: better)")
    figure.suptitle(
        f"Gain and forgetting by method, {results.target_names}", x=0.01, ha="left", weight="bold"
    )
    axes.set_title(
        "bars: range over seeds; lines: what no other rate of the method beats; hollow: beaten",
        loc="left",
        fontsize="small",
    )
    save_figure(figure, path, format=format)


def scale_gentle_end(axes: Axes, methods: Sequence[MethodFrontier]) -> None:
    """Linear around 0, logarithmic far out: gentle runs, the ones that one would use, are not squeezed into a corner."""
    forgotten = [
        abs(rate.mean.forgetting) for method in methods for rate in method.rates if rate.mean is not None
    ]
    linear = max(1e-3, median(forgotten)) if forgotten else 1.0
    axes.set_xscale("asinh", linear_width=linear)
    magnitudes = [float(f"{digit}e{power}") for power in range(-4, 3) for digit in (1, 2, 5)]
    axes.set_xticks([0, *(sign * m for m in magnitudes if m > linear / 8 for sign in (1, -1))])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))


@dataclass(frozen=True)
class Look:
    """How a variant is drawn."""

    colour: str
    marker: str
    line: Literal["-", "--", "-.", ":"]


def looks_of(names: Sequence[str]) -> dict[str, Look]:
    """`full+replay` has the colour of `full` and another line; every variant has a marker of its own."""
    looks: dict[str, Look] = {}
    methods = list(dict.fromkeys(name.partition("+")[0] for name in names))
    seen = dict.fromkeys(methods, 0)
    for number, name in enumerate(names):
        method = name.partition("+")[0]
        round_of_colours, colour = divmod(methods.index(method), len(COLOURS))
        line = LINES[(seen[method] + round_of_colours) % len(LINES)]
        looks[name] = Look(COLOURS[colour], MARKERS[number % len(MARKERS)], line)
        seen[method] += 1
    return looks


def draw_method(axes: Axes, method: MethodFrontier, look: Look) -> None:
    """Draws a method's points, their range over seeds and its frontier, in its own look.

    Args:
        axes: Where.
        method: One that has a mean.
        look: Its own.
    """
    assert method.mean is not None
    path = list(_straight([(point.forgetting, point.gain) for point in method.mean.points]))
    axes.plot(
        [x for x, _ in path], [y for _, y in path], look.line, color=look.colour, linewidth=1.8, zorder=2
    )
    for rate in method.rates:
        if rate.mean is None:
            continue
        axes.errorbar(
            rate.mean.forgetting,
            rate.mean.gain,
            xerr=_error([point.forgetting for point in rate.by_seed.values()], rate.mean.forgetting),
            yerr=_error([point.gain for point in rate.by_seed.values()], rate.mean.gain),
            fmt=look.marker,
            color=look.colour,
            markersize=6.5,
            markerfacecolor=look.colour if method.is_on_frontier(rate) else "none",
            elinewidth=1,
            zorder=3,
        )


def _straight(pairs: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Points along straight lines, which the scale of the axis bends: what the tables interpolate is what is drawn."""
    for (x0, y0), (x1, y1) in pairwise(pairs):
        yield from ((x0 + (x1 - x0) * k / 50, y0 + (y1 - y0) * k / 50) for k in range(50))
    yield pairs[-1]


def _error(values: Sequence[float], mean: float) -> list[list[float]]:
    """How far the seeds reach below and above their mean."""
    return [
        [max(0.0, mean - min(values))],
        [max(0.0, max(values) - mean)],
    ]  # a mean may be a rounding beside them


def _label(axes: Axes, methods: Sequence[MethodFrontier], looks: Mapping[str, Look]) -> None:
    """Names every line beside the axes, at the height of its end as far as there is room; a thin line leads there."""
    axes.autoscale_view()
    ends = [method.mean.points[-1] for method in methods if method.mean is not None]
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [to_axes.transform((end.forgetting, end.gain))[1] for end in ends]
    for method, end, height in zip(methods, ends, spread_out(heights, gap=_LABEL_GAP), strict=True):
        look = looks[method.name]
        axes.annotate(
            "",
            xy=(end.forgetting, end.gain),
            xytext=(_LABELS_AT, height),
            textcoords="axes fraction",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": look.colour,
                "linewidth": 0.6,
                "alpha": 0.5,
                "shrinkA": 0,
            },
            zorder=1,
        )
        beside = {"transform": axes.transAxes, "clip_on": False}
        axes.plot(_LABELS_AT, height, look.marker, color=look.colour, markersize=6.5, **beside)
        axes.text(_LABELS_AT + 0.015, height, method.name, va="center", **beside)
