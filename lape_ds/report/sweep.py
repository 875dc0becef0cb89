"""A sweep's frontier: gain against forgetting of every variant.

After the gains, from `sweep/frontier.json` and its picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lape_ds.report.blocks import Block, Missing, Picture, Prose, Row, Section, Table, command
from lape_ds.report.numbers import (
    Code,
    Line,
    Number,
    Quoted,
    Strong,
    count,
    fixed,
    general,
    how_many,
    line,
    signed,
)
from lape_ds.report.pictures import inline_picture
from lape_ds.report.runs import language_names
from lape_ds.report.setup import DASH
from lape_ds.report.sources import Place, Reader


def sweep_sentences(output_dir: Path, reader: Reader) -> Iterator[Line]:
    """Which variant gains most at equal forgetting: at the level that most variants reach, of such the middle one."""
    found = reader.json(output_dir / "sweep" / "frontier.json")
    table = None if found is None else found["tables"][0]
    if table is None or not len(table["levels"]):
        return
    reached = [
        sum(row[column]["mean"] is not None for row in table["rows"].content.values())
        for column in range(len(table["levels"]))
    ]
    fullest = [column for column, number in enumerate(reached) if number == max(reached)]
    column = fullest[len(fullest) // 2]
    best = _best(table, column, lower_is_better=False)
    variant, at = next(
        (name, row[column]) for name, row in table["rows"].items() if row[column]["mean"].content == best
    )
    yield line(
        "In the sweep, at a mean change of ", signed(Number.at(table["levels"][column])), " of the other languages, ",
        Strong(Code(variant)), " gains most: ", Strong(_value(at)), " bits per byte, of ", count(how_many(table["rows"].every())),
        " variants.",
    )  # fmt: skip


def sweep_section(output_dir: Path, recipe: str, reader: Reader, *, name: str = "sweep") -> Section:
    """Picture, tables at equal forgetting and at equal gain, every point."""
    title = "Gain against forgetting"
    found = reader.json(output_dir / "sweep" / "frontier.json")
    if found is None:
        return Section(
            name,
            title,
            [Missing("Methods compared over learning rates", command("lape-ds", "sweep", recipe))],
        )
    points = _points(found)
    blocks: list[Block] = [Prose(Quoted(note)) for note in found["notes"]]
    svg = reader.text(output_dir / "sweep" / "frontier.svg")
    target = language_names(found["targets"].content)
    if svg is not None:
        description = (
            f"Each variant's runs as points: to the right more is forgotten of the others, upward more is gained on {target}. "
            "The tables below have the same numbers."
        )
        picture = inline_picture(
            svg,
            name=f"{name}-frontier",
            title=f"Frontiers of gain and forgetting, {target}",
            description=description,
        )
        blocks.append(
            Picture(
                picture,
                line("Gain on ", target, " against the mean change of the other languages, bits per byte."),
                [points],
            )
        )
    blocks += [_level_table(table) for table in found["tables"] if len(table["levels"])]
    if svg is None:
        blocks.append(points)
    blocks.append(
        Prose(
            "Bold: the best of its column. Values between two learning rates are interpolated along its frontier; –: outside "
            "of what its runs span. ± half the range over seeds.",
            is_note=True,
        )
    )
    return Section(name, title, blocks)


def _level_table(table: Place) -> Table:
    lower_is_better = table["title"].content.startswith("Mean change")
    rows = []
    columns = range(len(table["levels"]))
    bests = [_best(table, column, lower_is_better) for column in columns]
    for variant, row in table["rows"].items():
        cells: list[Any] = []
        for column, at in enumerate(row):
            value = at.get("mean")
            shown = DASH if value is None else _value(at)
            cells.append(Strong(shown) if value is not None and value.content == bests[column] else shown)
        rows.append(Row(Code(variant), cells))
    headings = ["variant", *(general(Number.at(level)) for level in table["levels"])]
    return Table(Quoted(table["title"]), headings, rows)


def _value(at: Place) -> Line:
    spread = at.get("spread")
    return line(fixed(Number.at(at["mean"])), *([] if spread is None else [" ±", fixed(Number.at(spread))]))


def _best(table: Place, column: int, lower_is_better: bool) -> float | None:
    values = [
        row[column]["mean"] for row in table["rows"].content.values() if row[column]["mean"] is not None
    ]
    return (min if lower_is_better else max)(values) if values else None


def _points(found: Place) -> Table:
    rows = []
    for variant in found["variants"]:
        for rate in variant["rates"]:
            mean = rate.get("mean")
            seeds = rate["by_seed"].every()
            cells: list[Any] = [
                count(Number.at(variant["trained_parameters"])),
                general(Number.at(rate["learning_rate"])),
                DASH if mean is None else signed(Number.at(mean["gain"])),
                DASH if mean is None else signed(Number.at(mean["forgetting"])),
                "on it" if rate["on_frontier"].content else "",
                _seeds(rate, seeds),
            ]
            rows.append(Row(Code(variant["name"].content), cells))
    headings = [
        "variant",
        "weights trained",
        "learning rate",
        "gain",
        "change of others",
        "frontier",
        "seeds",
    ]
    return Table("Every point: the mean over seeds, bits per byte", headings, rows, words=(4, 5))


def _seeds(rate: Place, seeds: Any) -> Any:
    parts: list[Any] = [count(how_many(seeds))]
    for key, words in (("diverged", " diverged"), ("missing", " not finished")):
        if len(rate[key]):
            parts += [", ", count(how_many(rate[key].every())), words]
    return line(*parts)
