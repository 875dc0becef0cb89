"""The atlas's picture of how sure every language's set is: agreement with that from less text, and confidence of its neurons.

After stability.json, whose figures it shows; needs matplotlib and no display. Rows as in analysis/neurons/pictures.py. Of
a selection whose counts are at hand, stability_pictures.py there draws the curve alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lape_ds.analysis.neurons.overlap import by_family
from lape_ds.analysis.neurons.pictures import name_families, name_rows, part_families, row_size
from lape_ds.analysis.style import COLOURS, INK, drawing

_AGREEMENT, _CONFIDENCE = COLOURS[:2]


@drawing()
def draw_agreement_and_confidence(stability: Mapping[str, Any], families: Mapping[str, str]) -> Figure:
    """Above, agreement at doubling amounts of text; below, a row for each language.

    Args:
        stability: The content of stability.json.
        families: Of every language.
    """
    codes = by_family(families)
    height, font = row_size(len(codes))
    above, below = 2.6, height * len(codes)
    figure = Figure(figsize=(8.5, above + below + 1.6), layout="constrained")
    curves, rows = figure.subplots(2, 1, height_ratios=[above, below])
    _draw_curves(curves, stability)
    _draw_rows(rows, [stability["languages"][code] for code in codes], font)
    name_rows(rows, codes, font)
    of_rows = [families[code] for code in codes]
    part_families(rows, of_rows, columns=False, colour="0.8")
    name_families(rows, of_rows, font, beside=1.02)
    figure.suptitle(
        f"How sure the sets are, {stability['model_id']} ({stability['method']})",
        x=0.01,
        ha="left",
        weight="bold",
    )
    return figure


def _draw_curves(axes: Axes, stability: Mapping[str, Any]) -> None:
    """Each language a thin line; the median a thick one."""
    languages = list(stability["languages"].values())
    places = range(len(languages[0]["curve"]) - 1)
    lines = [[point["jaccard_to_next"] for point in one["curve"][:-1]] for one in languages]
    for line in lines:
        axes.plot(places, line, color="0.75", linewidth=0.5, zorder=1)
    axes.plot(
        places, [median(line[place] for line in lines) for place in places], "o-", color=_AGREEMENT, zorder=2
    )
    names = [
        f"{point['num_buckets']}/16 to\n{2 * point['num_buckets']}/16" for point in languages[0]["curve"]
    ]
    axes.set_xticks(places, names[:-1], fontsize="small")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("Jaccard to the next", fontsize="small")
    axes.set_title(
        "agreement of the sets from twice the text (blue: median of the languages)",
        loc="left",
        fontsize="small",
        color=INK,
    )


def _draw_rows(axes: Axes, languages: list[Mapping[str, Any]], font: float) -> None:
    size = 0.45 * font
    with_neurons = [(row, one) for row, one in enumerate(languages) if one["neurons"]]
    sure = [(row, one["confidence"]["mean"]) for row, one in with_neurons if one["confidence"]]
    if sure:
        axes.plot(
            [mean for _, mean in sure],
            [row for row, _ in sure],
            "D",
            color=_CONFIDENCE,
            markersize=size,
            label="mean confidence of its neurons",
        )
    axes.plot(
        [one["half_agreement"] for _, one in with_neurons],
        [row for row, _ in with_neurons],
        "o",
        color=_AGREEMENT,
        markersize=size,
        label="agreement of half and all of the text",
    )
    axes.set_xlim(0, 1.02)
    axes.set_ylim(len(languages) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize="small")
