"""The picture of activation probabilities before and after training: a row of three panels for each run.

After activations.py; needs matplotlib and no display.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lape_ds.analysis.style import INK, drawing, save_figure
from lape_ds.analysis.training.activations import GROUP_NAMES, Activations

# By group, so that every run and panel shows them alike.
_LOOKS = {
    "trained": ("#0072B2", "o"),
    "identified": ("#009E73", "^"),
    "random": ("#E69F00", "s"),
    "all": (INK, "D"),
}
_MOST_POINTS = 2000  # of a group: of more, evenly many
_MOST_NAMED = 24  # languages by name


@drawing()
def draw_activations(results: Sequence[Activations], path: Path, *, format: str) -> None:
    """Draws single neurons, mean changes by language and by layer into a file.

    Args:
        results: Of one run, or of several: one under another.
        path: The file.
        format: `png` or `svg`.
    """
    figure = Figure(figsize=(12, 0.9 + 3.6 * len(results)), layout="constrained")
    panels = figure.subplots(len(results), 3, squeeze=False, width_ratios=(1, 1.25, 1))
    for (neurons, languages, layers), one in zip(panels, results, strict=True):
        _draw_neurons(neurons, one)
        _draw_languages(languages, one)
        _draw_layers(layers, one)
        for axes in (neurons, languages, layers):
            axes.tick_params(labelsize="small")
            axes.grid(axis="y")
        if len(results) > 1:
            neurons.set_title(one.subject.name, loc="left", fontsize="medium", weight="bold")
    handles = {
        handle.get_label(): handle for row in panels for handle in row[1].get_legend_handles_labels()[0]
    }
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=4, fontsize="small")
    name = results[0].subject.name if len(results) == 1 else f"{len(results)} runs"
    figure.suptitle(
        f"p(gate > 0) on held-out text before and after training, {name}", x=0.01, ha="left", weight="bold"
    )
    save_figure(figure, path, format=format)


def _draw_neurons(axes: Axes, one: Activations) -> None:
    code = one.subject.languages[0]
    axes.plot((0, 1), (0, 1), color=INK, linewidth=0.8, alpha=0.5, zorder=1)
    for group in (name for name in ("random", "identified", "trained") if name in one.points):
        points, (colour, marker) = one.points[group][code], _LOOKS[group]
        every = slice(None, None, -(-len(points.before) // _MOST_POINTS))
        axes.plot(
            points.before[every],
            points.after[every],
            marker,
            color=colour,
            markersize=3,
            alpha=0.6,
            markeredgewidth=0,
        )
    axes.set_xlabel(f"before, {code}", fontsize="small")
    axes.set_ylabel("after (a point: a neuron)", fontsize="small")


def _draw_languages(axes: Axes, one: Activations) -> None:
    """Mean change of each group on each language's text, the trained languages first and bold."""
    codes = [*one.subject.languages, *one.others]
    step = 0.8 / len(one.changes)
    for number, (group, by_language) in enumerate(one.changes.items()):
        colour, marker = _LOOKS[group]
        places = [place + step * (number - (len(one.changes) - 1) / 2) for place in range(len(codes))]
        axes.errorbar(
            places,
            [by_language[code].change for code in codes],
            yerr=[by_language[code].half_width or 0.0 for code in codes],
            fmt=marker,
            color=colour,
            markersize=3.5,
            elinewidth=0.9,
            label=GROUP_NAMES[group],
        )
    axes.axhline(0, color=INK, linewidth=0.8, alpha=0.5, zorder=1)
    if len(codes) <= _MOST_NAMED:
        axes.set_xticks(range(len(codes)), [code.partition("_")[0] for code in codes], rotation=90)
        for label in axes.get_xticklabels()[: len(one.subject.languages)]:
            label.set_fontweight("bold")
    axes.set_ylabel("mean change (bar: 95 %)", fontsize="small")
    axes.set_xlabel("on the held-out text of (trained: bold)", fontsize="small")


def _draw_layers(axes: Axes, one: Activations) -> None:
    code = one.subject.languages[0]
    for group, by_language in one.changes.items():
        colour, marker = _LOOKS[group]
        known = [
            (layer, change) for layer, change in enumerate(by_language[code].by_layer) if change is not None
        ]
        axes.plot(*zip(*known, strict=True), marker=marker, color=colour, linewidth=1.4, markersize=3.5)
    axes.axhline(0, color=INK, linewidth=0.8, alpha=0.5, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel(f"layer, {code}", fontsize="small")
    axes.set_ylabel("mean change", fontsize="small")
