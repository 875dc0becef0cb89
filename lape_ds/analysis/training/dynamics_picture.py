"""The picture of a training's course, of one run or of several on top of each other.

After dynamics.py; needs matplotlib and no display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lape_ds.analysis.style import INK, colour_of, drawing, label_2_and_5, line_of, save_figure, spread_out
from lape_ds.analysis.training.dynamics import Dynamics
from lape_ds.languages import find_language
from lape_ds.runlog import readable_count

_MOST_POINTS = 300  # of a line; of more steps each point is the mean of some
_NORMS = (
    ("gradient_norm", "gradient norm, before clipping"),
    ("update_norm", "norm of the step's change of the weights"),
)


@drawing()
def draw_dynamics(results: Sequence[Dynamics], path: Path, *, format: str) -> None:
    """Draws loss, held-out change, gradient norm and, where it was logged, update norm over tokens into a file.

    Args:
        results: Of one run: every language has a line; of several: trained languages against the mean of the others.
        path: The file.
        format: `png` or `svg`.
    """
    norms = [(key, title) for key, title in _NORMS if any(key in one.measures for one in results)]
    figure = Figure(figsize=(11, 7), layout="constrained")
    loss, heldout, *below = figure.subplots(2, 2).flat
    _draw_measure(loss, results, "loss")
    loss.set_title("training loss, nats per token", loc="left", fontsize="medium")
    if all(len(one.heldout_step) < 2 for one in results):
        _say(heldout, "held-out text was not measured\nafter the first step yet")
    else:
        (_draw_languages if len(results) == 1 else _draw_means)(heldout, results)
    for axes, (key, title) in zip(below, norms, strict=False):
        _draw_measure(axes, results, key)
        _scale_norms(axes)
        axes.set_title(title, loc="left", fontsize="medium")
    for axes in below[len(norms) :]:
        _say(axes, "update norms were not logged\n(train.log_update_norms: true)")
    for axes in (axes for axes in (loss, heldout, *below) if axes.axison):
        _label_tokens(axes)
    if len(results) > 1:
        figure.legend(
            loc="outside lower center", ncols=min(4, len(results)), handles=loss.get_lines(), fontsize="small"
        )
    title = results[0].subject.name if len(results) == 1 else f"{len(results)} runs"
    figure.suptitle(f"Training dynamics, {title}", x=0.01, ha="left", weight="bold")
    save_figure(figure, path, format=format)


def _draw_measure(axes: Axes, results: Sequence[Dynamics], name: str) -> None:
    for number, one in enumerate(results):
        if name not in one.measures:
            continue
        known = [
            (tokens, value)
            for tokens, value in zip(one.tokens, one.measures[name], strict=True)
            if value is not None
        ]
        axes.plot(
            *_thinned(known),
            line_of(number),
            color=colour_of(number),
            linewidth=1.4,
            label=one.subject.name,
        )


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """X and y of at most `_MOST_POINTS` points: each the end and the mean of equally many that follow each other."""
    size = -(-len(points) // _MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [group[-1][0] for group in groups], [fmean(y for _, y in group) for group in groups]


def _draw_languages(axes: Axes, results: Sequence[Dynamics]) -> None:
    (one,) = results
    lines = {}
    for code, values in one.heldout.items():
        trained = code in one.subject.languages
        changes = [value - values[0] for value in values]
        axes.plot(
            one.heldout_tokens,
            changes,
            "-o" if trained else "-",
            color=colour_of(0) if trained else INK,
            linewidth=2.2 if trained else 0.9,
            markersize=3.5,
            alpha=1 if trained else 0.75,
            zorder=3 if trained else 2,
        )
        lines[f"{code} {changes[-1]:+.3f}"] = changes[-1]
    _finish_heldout(axes, "each language")
    _name_ends(axes, lines, bold=[name for name in lines if name.split()[0] in one.subject.languages])


def _draw_means(axes: Axes, results: Sequence[Dynamics]) -> None:
    for number, one in enumerate(results):
        trained = [code for code in one.heldout if code in one.subject.languages]
        for codes, line in ((trained, "-"), (one.others, ":")):
            means = one.mean_heldout(codes)
            if means:
                axes.plot(
                    one.heldout_tokens,
                    [mean - means[0] for mean in means],
                    line,
                    color=colour_of(number),
                    linewidth=1.6,
                    marker="o",
                    markersize=3,
                )
    trained = sorted({find_language(code).name for one in results for code in one.subject.languages})
    name = trained[0] if len(trained) == 1 else "what was trained"
    _finish_heldout(axes, f"solid: {name}; dotted: others")


def _finish_heldout(axes: Axes, which: str) -> None:
    axes.axhline(0, color=INK, linewidth=0.8, alpha=0.5, zorder=1)
    axes.set_title(f"change of held-out bits per byte, {which}", loc="left", fontsize="medium")


def _name_ends(axes: Axes, ends: Mapping[str, float], *, bold: Sequence[str]) -> None:
    """Names every line at its right end, as far as there is room at its height."""
    if not ends:
        return
    axes.autoscale_view()
    low, high = axes.get_ylim()
    room = min(0.055, 1.0 / len(ends))
    heights = spread_out([(value - low) / (high - low) for value in ends.values()], gap=room)
    inside = min(0.0, 1.0 - max(heights)) + max(0.0, -min(heights))
    for name, height in zip(ends, (height + inside for height in heights), strict=True):
        axes.text(
            1.02,
            height,
            name,
            transform=axes.transAxes,
            va="center",
            fontsize=7.5 if len(ends) <= 18 else 5.5,
            color=colour_of(0) if name in bold else INK,
            weight="bold" if name in bold else "normal",
        )


def _scale_norms(axes: Axes) -> None:
    """Logarithmic where norms are of several magnitudes."""
    axes.autoscale_view()
    values = [value for line in axes.get_lines() for value in line.get_ydata() if value > 0]  # type: ignore[union-attr]
    if values and max(values) > 10 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda norm, _: f"{norm:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda norm, _: label_2_and_5(norm)))
    else:
        axes.set_ylim(bottom=0)


def _say(axes: Axes, why: str) -> None:
    """Instead of a curve."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes)


def _label_tokens(axes: Axes) -> None:
    axes.set_xlabel("tokens seen", fontsize="small")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: readable_count(tokens) if tokens else "0"))
    axes.tick_params(which="both", labelsize="small")
    axes.grid(axis="y")
