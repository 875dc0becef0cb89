"""The picture of a selection's stability: agreement of each set with that from twice the text, against tokens.

After the measuring in lape_ds/neurons; needs matplotlib and no display. A dozen languages have a line each; of hundreds a band
shows how they lie, and the least stable ones have lines.
"""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from lape_ds.analysis.neurons.stability_tables import least_stable
from lape_ds.analysis.style import INK, drawing, spread_out
from lape_ds.neurons.stability import LanguageStability, Stability
from lape_ds.runlog import readable_count

_FEW = 20  # languages with a line each
_WORST = 6  # lines beside a band
_LABEL_GAP = 0.034  # of the axes' height


@drawing()
def draw_stability(stability: Stability) -> Figure:
    """Jaccard to the set of the next doubling against tokens, on a logarithmic scale."""
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    many = len(stability.languages) > _FEW
    drawn = least_stable(stability, _WORST) if many else list(stability.languages)
    if many:
        _draw_band(axes, stability)
    colours = colormaps["tab10" if len(drawn) <= 10 else "tab20"]
    for number, one in enumerate(drawn):
        axes.plot(*_points(one), marker="o", markersize=3.5, linewidth=1.3, color=colours(number))
    lowest = min(min(_points(one)[1]) for one in stability.languages)
    axes.set_ylim(max(0.0, lowest - 0.05), 1.02)
    _label(axes, drawn, [colours(number) for number in range(len(drawn))])
    axes.set_xlabel("tokens of the language in the larger of the two sets' text")
    axes.set_ylabel("Jaccard similarity of the sets from half and all of it")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: readable_count(tokens)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y")
    figure.suptitle(f"Stability of the neuron sets, {stability.model_id}", x=0.01, ha="left", weight="bold")
    title = f"{stability.method}, {len(stability.languages)} languages"
    if many:
        title += f"; dark: the middle half, light: 5th to 95th percentile; lines: the {_WORST} least stable"
    axes.set_title(title, loc="left", fontsize="small", color=INK)
    return figure


def _points(one: LanguageStability) -> tuple[list[int], list[float]]:
    """(tokens of each doubling's text, Jaccard of its set and that of its half)."""
    tokens = [max(1, point.num_tokens) for point in one.curve[1:]]
    return tokens, [point.jaccard_to_next or 0.0 for point in one.curve[:-1]]


def _draw_band(axes: Axes, stability: Stability) -> None:
    points = [_points(one) for one in stability.languages]
    tokens = np.median([tokens for tokens, _ in points], axis=0)
    low, lower, middle, upper, high = np.quantile(
        [y for _, y in points], [0.05, 0.25, 0.5, 0.75, 0.95], axis=0
    )
    axes.fill_between(tokens, low, high, color="0.9", linewidth=0)
    axes.fill_between(tokens, lower, upper, color="0.78", linewidth=0)
    axes.plot(tokens, middle, color=INK, linewidth=2)


def _label(axes: Axes, drawn: list[LanguageStability], colours: list[tuple[float, ...]]) -> None:
    """Names beside the axes at the heights of the lines' ends, as far as there is room; a thin line leads there."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [(xs[-1], ys[-1]) for xs, ys in map(_points, drawn)]
    heights = [float(to_axes.transform(end)[1]) for end in ends]
    places = spread_out(heights, gap=_LABEL_GAP)
    down = max(0.0, max(places) - 1)  # not above the axes
    for one, end, colour, height in zip(drawn, ends, colours, places, strict=True):
        axes.annotate(
            f"{one.code} {end[1]:.2f}",
            xy=end,
            xytext=(1.05, height - down),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "shrinkA": 0,
                "shrinkB": 2,
                "relpos": (0, 0.5),  # from the middle of the text's left side
            },
        )
