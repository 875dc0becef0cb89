"""The neurons themselves: how much text they needed, and what is lost without them.

After training's sections, from what `identify` and `lape-ds neurons ablate` left in the recipe's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lape_ds.languages import find_language
from lape_ds.recipe import NEURON_METHODS
from lape_ds.report.blocks import Block, Cell, Missing, Prose, Row, Section, Table, command
from lape_ds.report.numbers import Line, Number, count, fixed, line, number_at, percent, signed
from lape_ds.report.runs import Run
from lape_ds.report.setup import DASH
from lape_ds.report.sources import Place, Reader

_MATRIX = 24  # of more languages the page shows rows of summary only
_KINDS = {
    "identified": "identified",
    "random": "random, same number",
    "most_active": "most active, same number",
}


def stability_section(
    runs: Sequence[Run], recipe: str | Path, reader: Reader, *, name: str = "stability"
) -> Section:
    """Agreement of each language's set with that of twice the text.

    Args:
        runs: Of one recipe.
        recipe: As commands take it.
        reader: Of the page.
        name: Of the section.
    """
    title = "Stability of the neurons"
    targets = _targets(runs)
    found = reader.json(runs[0].neurons_folder / "stability.json")
    if found is None:
        missing = Missing("How much text the neurons needed", command("lape-ds", "identify", recipe))
        return Section(name, title, [missing] if _train_neurons(runs) else [])
    languages = found["languages"]
    codes = [code for code in targets if code in languages] + [
        code for code in languages.names() if code not in targets
    ]
    steps = list(languages[codes[0]]["curve"])[1:]
    rows = [
        _stability_row(find_language(code).name, languages[code], is_main=code in targets) for code in codes
    ]
    headings = [
        "language", "tokens", "neurons",
        *(line("to ", count(Number.at(step["num_buckets"])), " buckets") for step in steps),
        "resampled", "mean confidence",
    ]  # fmt: skip
    table = Table(
        "Jaccard similarity of each language's set to that of twice the text", headings, rows, is_folded=False
    )
    note = line(
        "Counts are kept in buckets of documents, each a random part of the text: the last such column compares the sets from "
        "half of the documents and from all. Resampled: similarity of sets from documents drawn anew (",
        count(Number.at(found["num_resamples"])), " times), and where most of them lie; confidence: how often a neuron is in it.",
    )  # fmt: skip
    return Section(name, title, [table, Prose(note, is_note=True)])


def _stability_row(heading: Any, one: Place, *, is_main: bool) -> Row:
    jaccards = [Number.at(point["jaccard_to_next"]) for point in [*one["curve"]][:-1]]
    resampled, confidence = one.get("resampled"), number_at(one.get("confidence", "mean"))
    spread: Any = DASH
    if resampled is not None:
        mean, low, high = (fixed(Number.at(resampled[key]), 2) for key in ("mean", "low", "high"))
        spread = line(mean, " (", low, "–", high, ")")
    cells: list[Any] = [count(Number.at(one["tokens"])), count(Number.at(one["neurons"]))]
    cells += [Cell(fixed(number, 2), heat=-number.value) for number in jaccards]
    return Row(
        heading, [*cells, spread, DASH if confidence is None else fixed(confidence, 2)], is_main=is_main
    )


def ablation_section(
    runs: Sequence[Run], recipe: str | Path, reader: Reader, *, name: str = "ablation"
) -> Section:
    """What is lost when neurons are switched off, and with controls of the same size.

    Args:
        runs: Of one recipe.
        recipe: As commands take it.
        reader: Of the page.
        name: Of the section.
    """
    targets = _targets(runs)
    found = reader.json(runs[0].output_dir / "ablation" / "ablation.json")
    if found is None:
        missing = Missing(
            "What is lost with each language's neurons off", command("lape-ds", "neurons", "ablate", recipe)
        )
        return Section(name, "Ablation", [missing] if _train_neurons(runs) else [])
    blocks: list[Block] = [_specificity(found, targets)]
    codes = list(found["languages"].names())
    if len(codes) <= _MATRIX:
        blocks.append(_matrix(found, targets, codes))
    note = line(
        "Specificity: what a language's own text loses with its neurons off, less the mean of the others'; ± half of the ",
        percent(Number.at(found["intervals"]["level"]), 0), " interval (", count(Number.at(found["intervals"]["resamples"])),
        " resamples of documents; for all, of languages too). In colour: more than the control, its whole interval above zero.",
    )  # fmt: skip
    return Section(name, "Ablation", [*blocks, Prose(note, is_note=True)])


def _targets(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(code for run in runs for code in run.trained))


def _train_neurons(runs: Sequence[Run]) -> bool:
    return any(run.method in NEURON_METHODS for run in runs)


def _specificity(found: Place, targets: Sequence[str]) -> Table:
    scores, above = found["specificity"], found["specificity_above"]
    codes = scores["identified"]["languages"].names()
    rows = [
        _specificity_row(
            "all languages",
            [scores[kind]["overall"] for kind in _KINDS],
            [above[k]["overall"] for k in above.names()],
            is_total=True,
        )
    ]
    for code in sorted(codes, key=lambda code: (code not in targets, codes.index(code))):
        rows.append(
            _specificity_row(
                find_language(code).name,
                [scores[kind]["languages"][code] for kind in _KINDS],
                [above[kind]["languages"][code] for kind in above.names()],
                is_main=code in targets,
            )
        )
    headings = ["language", *_KINDS.values(), "more than random", "more than most active"]
    return Table("Specificity of switched-off neurons, bits per byte", headings, rows)


def _specificity_row(
    heading: Any,
    scores: Sequence[Place],
    above: Sequence[Place],
    *,
    is_main: bool = False,
    is_total: bool = False,
) -> Row:
    cells: list[Any] = [_estimate(score) for score in scores]
    for one in above:
        half = number_at(one.get("half_width"))
        is_above = half is not None and one["value"].content > half.value
        cells.append(Cell(_estimate(one), "better" if is_above else ""))
    return Row(heading, cells, is_total, is_main)


def _estimate(place: Place) -> Line:
    half = number_at(place.get("half_width"))
    return line(signed(Number.at(place["value"]), 4), *([] if half is None else [" ±", fixed(half, 4)]))


def _matrix(found: Place, targets: Sequence[str], codes: Sequence[str]) -> Table:
    changes = found["changes"]["identified"]
    widest = max(abs(value) for row in changes.content.values() for value in row.values()) or 1.0
    rows = [
        Row(
            find_language(off).name,
            [
                Cell(signed(Number.at(changes[off][code]), 3), heat=changes[off][code].content / widest)
                for code in codes
            ],
            is_main=off in targets,
        )
        for off in codes
        if off in changes
    ]
    caption = "Change of each language's text (columns) with a language's neurons off (rows), bits per byte"
    return Table(caption, ["off", *(_abbreviated(code) for code in codes)], rows, is_folded=len(codes) > 12)


def _abbreviated(code: str) -> str:
    return code.partition("_")[0]
