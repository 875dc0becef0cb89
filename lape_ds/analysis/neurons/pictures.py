"""Pictures of a neuron set: languages by layers, and who shares how much with whom.

After overlap.py, whose figures they show; need matplotlib and no display. Made for a dozen languages and for hundreds: rows keep
their height, and relatives stand together under their family's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby, pairwise
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from lape_ds.analysis.neurons.overlap import Layers, Overlap, by_family
from lape_ds.analysis.style import INK, drawing, save_figure, spread_out
from lape_ds.errors import UserError
from lape_ds.writing import whole_file

_MANY = 40  # of more rows each gets less room
_IN_FIGURES = 20  # up to so many names a cell has room for its figure
_NO_NEURON = "0.93"


def write_picture(figure: Figure, path: Path) -> None:
    """Writes a picture, whole or not at all.

    Args:
        figure: What was drawn.
        path: `.png` or `.svg`.

    Raises:
        UserError: Another suffix.
    """
    format = check_picture(path)
    with whole_file(path) as temporary:
        save_figure(figure, temporary, format=format)


def check_picture(path: Path) -> str:
    """The format of a picture that is to be written.

    Raises:
        UserError: It is neither PNG nor SVG.
    """
    format = path.suffix.removeprefix(".").lower()
    if format not in ("png", "svg"):
        raise UserError(
            f"--picture {path}: no such kind of picture; allowed: a name that ends in .png or .svg"
        )
    return format


@drawing()
def draw_layers(layers: Layers) -> Figure:
    """Languages by layers: how many neurons, on a logarithmic scale; grey where there are none."""
    order = by_family({one.code: one.family for one in layers.languages})
    languages = sorted(layers.languages, key=lambda one: order.index(one.code))
    numbers = np.array([one.per_layer for one in languages], dtype=float)
    height, font = row_size(len(languages))
    num_layers = numbers.shape[1]
    figure = Figure(
        figsize=(max(7.5, 3.6 + 0.17 * num_layers), 1.7 + height * len(languages)), layout="constrained"
    )
    axes = figure.add_subplot()
    colours = colormaps["viridis_r"].with_extremes(bad=_NO_NEURON)
    image = axes.imshow(
        np.ma.masked_equal(numbers, 0),
        aspect="auto",
        cmap=colours,
        norm=LogNorm(1, max(2.0, numbers.max())),
        interpolation="nearest",
    )
    name_rows(axes, [one.code for one in languages], font)
    families = [one.family for one in languages]
    part_families(axes, families, columns=False)
    name_families(axes, families, font, beside=1.12)
    for row, one in enumerate(languages):
        axes.text(
            1.01, row, f"{one.total:,}", transform=axes.get_yaxis_transform(), va="center", fontsize=font
        )
    axes.set_xlabel("layer")
    axes.set_xticks(range(0, num_layers, max(1, num_layers // 16)))
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.01, fraction=0.03)
    bar.set_label("neurons of the language in the layer (grey: none); right: in all layers", fontsize="small")
    bar.ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    found = layers.neuron_set
    figure.suptitle(f"Language neurons by layer, {found.model_id}", x=0.01, ha="left", weight="bold")
    axes.set_title(
        f"{found.method}: {layers.distinct:,} distinct of {found.num_layers * found.neurons_per_layer:,} neurons",
        loc="left",
        fontsize="small",
        color=INK,
    )
    return figure


@drawing()
def draw_overlap(overlap: Overlap, *, title: str) -> Figure:
    """The matrix of Jaccard similarities; the diagonal, 1 everywhere, is left out."""
    number = len(overlap.names)
    similar = np.array([[overlap.jaccard(a, b) for b in range(number)] for a in range(number)])
    np.fill_diagonal(similar, np.nan)
    height, font = row_size(number)
    side = max(3.2, (0.42 if number <= _IN_FIGURES else height) * number)
    figure = Figure(figsize=(side + 3.0, side + 1.9), layout="constrained")
    axes = figure.add_subplot()
    highest = float(np.nanmax(similar)) if number > 1 else 0.0
    image = axes.imshow(
        np.ma.masked_invalid(similar),
        # Pale where nothing is shared, as most of the cells of many languages are.
        cmap=colormaps["YlGnBu"].with_extremes(bad=_NO_NEURON),
        norm=Normalize(0, max(highest, 1e-6)),
        interpolation="nearest",
    )
    name_rows(axes, overlap.names, font)
    axes.set_xticks(range(number), overlap.names, rotation=90, fontsize=font)
    if overlap.families != overlap.names:
        part_families(axes, overlap.families, columns=True, colour="0.75")
        name_families(axes, overlap.families, font, beside=1.02)
    if number <= _IN_FIGURES:
        _write_figures(axes, similar, highest)
    bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.01, fraction=0.03)
    bar.set_label("Jaccard similarity: shared / all neurons of the two", fontsize="small")
    figure.suptitle(title, x=0.01, ha="left", weight="bold")
    axes.set_title(overlap.told_means(), loc="left", fontsize="small", color=INK)
    return figure


def row_size(number: int) -> tuple[float, float]:
    """Height of a row in inches and its font's size in points."""
    return (0.24, 8.5) if number <= _MANY else (0.135, 6.5)


def name_rows(axes: Axes, names: Sequence[str], font: float) -> None:
    """A name at the left of every row, and no frame around."""
    axes.set_yticks(range(len(names)), names, fontsize=font)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def part_families(axes: Axes, families: Sequence[str], *, columns: bool, colour: str = "white") -> None:
    """Lines between families that stand beside each other; those without relatives stand together."""
    for (size, following), end in zip(pairwise(_sizes(families)), _ends(families), strict=False):
        if size > 1 or following > 1:
            axes.axhline(end - 0.5, color=colour, linewidth=1.2)
            if columns:
                axes.axvline(end - 0.5, color=colour, linewidth=1.2)


def name_families(axes: Axes, families: Sequence[str], font: float, *, beside: float) -> None:
    """Their names at the right of the rows, as far as there is room at their height."""
    names = [name for name, _ in groupby(families)]
    middles = [end - (size + 1) / 2 for size, end in zip(_sizes(families), _ends(families), strict=True)]
    for name, height in zip(names, spread_out(middles, gap=1.0), strict=True):
        axes.text(
            beside,
            height,
            name,
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=font,
            color=INK,
        )


def _sizes(families: Sequence[str]) -> list[int]:
    return [len(list(members)) for _, members in groupby(families)]


def _ends(families: Sequence[str]) -> list[int]:
    return list(accumulate(_sizes(families)))


def _write_figures(axes: Axes, similar: np.ndarray, highest: float) -> None:
    for row, column in zip(*np.nonzero(~np.isnan(similar)), strict=True):
        value = similar[row, column]
        colour = "white" if value > 0.55 * highest else "black"
        axes.text(
            column, row, f"{value:.2f}".removeprefix("0"), ha="center", va="center", fontsize=7, color=colour
        )
