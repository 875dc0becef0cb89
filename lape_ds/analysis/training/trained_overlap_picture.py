"""The picture of whose neurons were trained: how much of the trained set each language has too, and where the set lies.

After trained_overlap.py; needs matplotlib and no display.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from lape_ds.analysis.style import INK, MARKERS, colour_of, drawing, line_of, save_figure
from lape_ds.analysis.training.trained_overlap import TrainedOverlap

_ROW_INCHES = 0.23
_CHANCE: dict[str, Any] = {"color": INK, "markersize": 9, "markeredgewidth": 1.6}


@drawing()
def draw_trained_overlap(results: Sequence[TrainedOverlap], path: Path, *, format: str) -> None:
    """Draws shares by language and neurons by layer into a file.

    Args:
        results: Of one run or several.
        path: The file.
        format: `png` or `svg`.
    """
    codes = list(dict.fromkeys(other.code for one in results for other in one.languages))
    figure = Figure(figsize=(10.5, max(3.6, 1.8 + _ROW_INCHES * len(codes))), layout="constrained")
    shares, layers = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_shares(shares, results, codes)
    _draw_layers(layers, results)
    handles, labels = layers.get_legend_handles_labels()
    chance = shares.plot([], [], "|", label="by chance", **_CHANCE)[0]
    figure.legend(
        [*handles, chance],
        [*labels, "by chance"],
        loc="outside lower center",
        ncols=min(5, len(handles) + 1),
        fontsize="small",
    )
    of = results[0].subject.name if len(results) == 1 else f"{len(results)} runs"
    figure.suptitle(f"Whose neurons were trained, {of}", x=0.01, ha="left", weight="bold")
    save_figure(figure, path, format=format)


def _draw_shares(axes: Axes, results: Sequence[TrainedOverlap], codes: Sequence[str]) -> None:
    trained = {code for one in results for code in one.subject.languages}
    for number, one in enumerate(results):
        rows = [codes.index(other.code) for other in one.languages]
        axes.plot(
            [other.expected / one.num_neurons for other in one.languages],
            rows,
            "|",
            color=INK,
            markersize=9,
            markeredgewidth=1.6,
            zorder=2,
        )
        axes.plot(
            [other.share_of_trained for other in one.languages],
            rows,
            MARKERS[number % len(MARKERS)],
            color=colour_of(number),
            markersize=5.5,
            zorder=3,
        )
    axes.set_yticks(range(len(codes)), codes, fontsize="small")
    for code, label in zip(codes, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if code in trained else "normal")
    axes.set_ylim(len(codes) - 0.5, -0.5)
    axes.set_xlim(left=-0.02)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.tick_params(labelsize="small")
    axes.grid(axis="y")
    axes.set_title(
        "share of the trained neurons that a language has too (bold: trained)", loc="left", fontsize="medium"
    )


def _draw_layers(axes: Axes, results: Sequence[TrainedOverlap]) -> None:
    for number, one in enumerate(results):
        axes.plot(
            range(len(one.per_layer)),
            one.per_layer,
            line_of(number),
            marker=MARKERS[number % len(MARKERS)],
            markersize=3.5,
            linewidth=1.3,
            color=colour_of(number),
            label=one.subject.name,
        )
    axes.set_xlabel("layer", fontsize="small")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize="small")
    axes.grid(axis="y")
    axes.set_title("trained neurons in each layer", loc="left", fontsize="medium")
