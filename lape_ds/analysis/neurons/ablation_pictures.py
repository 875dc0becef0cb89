"""The picture of an ablation: what each language's text loses when another's neurons are off, beside the controls.

After the scores; needs matplotlib and no display. Three matrices on one scale: what LAPE finds should show a diagonal that
the controls of the same size do not have.
"""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from lape_ds.analysis.neurons.ablation_tables import families_of, kind_name, short_names, signed, told
from lape_ds.analysis.neurons.pictures import name_families, name_rows, part_families
from lape_ds.analysis.neurons.specificity import Specificity
from lape_ds.analysis.style import drawing
from lape_ds.identification.ablation import Ablation
from lape_ds.identification.ablation_rows import KINDS, Kind

_IN_FIGURES = 12  # up to so many languages a cell has room for its figure
_NO_ROW = "0.93"


@drawing()
def draw_ablation(ablation: Ablation, scores: Specificity) -> Figure:
    """Three matrices: rows are switched off, columns measured; grey where a language has no neurons."""
    families = families_of(ablation)
    codes = list(families)
    number = len(codes)
    changes = {kind: _matrix(scores, kind, codes) for kind in KINDS}
    highest = max(float(np.nanmax(np.abs(matrix))) for matrix in changes.values()) or 1e-6
    # Near 0 linear, then logarithmic: one language's large loss must not make all others look like none.
    norm = AsinhNorm(linear_width=highest / 30, vmin=-highest, vmax=highest)
    colours = colormaps["RdBu_r"].with_extremes(bad=_NO_ROW)

    cell, font = (0.42, 8.5) if number <= _IN_FIGURES else (0.21, 8.0) if number <= 40 else (0.12, 6.0)
    side = max(2.4, cell * number)
    figure = Figure(figsize=(3 * side + 3.0, side + 2.1), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, kind in zip(panels, KINDS, strict=True):
        axes.imshow(
            np.ma.masked_invalid(changes[kind]),
            cmap=colours,
            norm=norm,
            aspect="equal",
            interpolation="nearest",
        )
        name_rows(axes, codes, font)
        axes.set_xticks(range(number), short_names(codes), rotation=90, fontsize=font)
        part_families(axes, list(families.values()), columns=True)
        if number <= _IN_FIGURES:
            _write_figures(axes, changes[kind], norm)
        axes.set_title(
            f"{kind_name(ablation, kind)}\nspecificity {told(scores.overall[kind])}",
            loc="left",
            fontsize="small",
        )
    panels[0].set_ylabel("neurons of … are off", fontsize="small")
    panels[0].set_xlabel("… loses", fontsize="small")
    name_families(panels[-1], list(families.values()), font, beside=1.02)
    _scale(figure, panels, ScalarMappable(norm, colours), highest)
    # The last part of a hub id, or of a folder's path, which is nobody's business: the picture may be published.
    model = ablation.neuron_set.model_id.rstrip("/").rpartition("/")[2]
    figure.suptitle(f"Ablation of language neurons, {model}", x=0.01, ha="left", weight="bold")
    return figure


def _matrix(scores: Specificity, kind: Kind, codes: list[str]) -> np.ndarray:
    """`[languages, languages]`, NaN in the row of a language without neurons."""
    rows = scores.changes[kind]
    return np.array([[rows[row][code] if row in rows else np.nan for code in codes] for row in codes])


def _scale(figure: Figure, panels: np.ndarray, shown: ScalarMappable, highest: float) -> None:
    bar = figure.colorbar(shown, ax=panels, location="bottom", shrink=0.5, aspect=50, pad=0.02, fraction=0.04)
    bar.set_label(
        "change in bits per byte: red is worse; random: mean of its sets (linear near 0, then logarithmic)",
        fontsize="small",
    )
    steps = [float(f"{digit}e{power}") for power in range(-7, 3) for digit in (1, 3)]
    ticks = [step for step in steps if highest / 40 <= step <= highest]
    bar.set_ticks([*(-tick for tick in reversed(ticks)), 0, *ticks])
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    bar.ax.minorticks_off()


def _write_figures(axes: Axes, changes: np.ndarray, norm: AsinhNorm) -> None:
    """In figures what the colours say."""
    for row, column in zip(*np.nonzero(~np.isnan(changes)), strict=True):
        value = float(changes[row, column])
        colour = "white" if abs(float(norm(value)) - 0.5) > 0.33 else "black"
        axes.text(column, row, signed(value, 3), ha="center", va="center", fontsize=6.5, color=colour)
