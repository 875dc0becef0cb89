"""The pictures of several sweeps as one: a panel each, with the same looks for the same methods.

Beside picture.py, which draws one sweep with its names beside the lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lape_ds.analysis.style import save_figure
from lape_ds.analysis.sweep.picture import draw_method, looks_of, scale_gentle_end
from lape_ds.analysis.sweep.results import SweepResults

_MOST_COLUMNS = 4
_PANEL = (3.4, 3.2)  # inches
_LEGEND = 1.8  # inches of width


def draw_panels(results: Sequence[SweepResults], path: Path, *, format: str, title: str) -> None:
    """Draws a panel for each sweep into a file.

    Args:
        results: At least one sweep.
        path: The file.
        format: `png` or `svg`.
        title: Above all panels, before what is drawn.
    """
    num_columns = min(_MOST_COLUMNS, len(results))
    num_rows = math.ceil(len(results) / num_columns)
    width, height = num_columns * _PANEL[0] + _LEGEND, num_rows * _PANEL[1] + 0.8
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flat
    looks = looks_of(list(dict.fromkeys(method.name for one in results for method in one.methods)))
    for axes, one in zip(panels, results, strict=False):
        axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
        drawn = [method for method in one.methods if method.mean is not None]
        scale_gentle_end(axes, drawn)
        axes.tick_params(axis="x", labelrotation=45, labelsize="small")
        for method in drawn:
            draw_method(axes, method, looks[method.name])
        axes.set_title(one.target_names, loc="left", fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(panels)[len(results) :]:
        axes.set_visible(False)
    figure.supxlabel(
        "mean change of all other languages, bits per byte   (right: more forgotten)", fontsize="medium"
    )
    figure.supylabel("gain on the target, bits per byte   (up: better)", fontsize="medium")
    figure.suptitle(f"{title}: gain and forgetting by method", x=0.01, ha="left", weight="bold")
    handles = [
        Line2D([], [], color=look.colour, marker=look.marker, linestyle=look.line, label=name)
        for name, look in looks.items()
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
    save_figure(figure, path, format=format)
