"""A matrix: models × languages × variants, as `lape-ds matrix table` wrote them.

Beside the sweep, from `table.json` and the pictures that it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lape_ds.report.blocks import (
    TONES,
    Block,
    Cell,
    Missing,
    Picture,
    Prose,
    Row,
    Section,
    Table,
    command,
)
from lape_ds.report.numbers import (
    Code,
    Line,
    Number,
    Quoted,
    Strong,
    count,
    duration,
    fixed,
    general,
    how_many,
    joined,
    line,
    number_at,
    signed,
    total,
)
from lape_ds.report.pictures import inline_picture
from lape_ds.report.setup import DASH
from lape_ds.report.sources import Place, Reader

_OWN = "subnetwork"  # the method that the others are measured against


def read_matrix(folder: Path, reader: Reader) -> Place | None:
    """The table of a matrix; None before there is one."""
    return reader.json(folder / "table.json")


def matrix_sentences(found: Place) -> Iterator[Line]:
    """How far it is."""
    states = found["cells"].every("state")
    yield line(
        "Cells (a model, a language, a method): ", count(how_many(states)), "; finished: ",
        Strong(count(how_many(states, "finished"))), ", failed: ", count(how_many(states, "failed")), ", begun: ",
        count(how_many(states, "begun")), ", waiting: ", count(how_many(states, "waiting")), ". All trainings took ",
        duration(total(found["cells"].every("seconds"))), ".",
    )  # fmt: skip
    for model in found["models"]:
        for grid in model["grids"]:
            if grid["at"].content == "equal forgetting":  # at tuned rates what learns least forgets least
                yield from _outcome(model, grid)


def _outcome(model: Place, grid: Place) -> Iterator[Line]:
    """What the subnetwork reached in a grid's mean over languages, and which method has the highest there."""
    means = {row["variant"].content: mean for row in grid["rows"] if (mean := row.get("mean")) is not None}
    against = grid.get("against")
    reference = _OWN if against is None else against["reference"].content
    own = means.get(reference)
    if own is None:
        return
    sign = 1 if grid["better"].content == "higher" else -1
    best = max(means, key=lambda variant: sign * means[variant]["value"].content)
    rest = (
        ", the highest"
        if best == reference
        else line("; the highest: ", Code(best), " ", _with_interval(means[best]))
    )
    yield line(
        Quoted(model["model"]), ", ", Quoted(grid["title"]), " (", Quoted(grid["measured"]), ", ", Quoted(grid["unit"]),
        ", mean over languages): ", Code(reference), " ", Strong(_with_interval(own)), rest, ".",
    )  # fmt: skip


def _with_interval(cell: Place) -> Line:
    half = number_at(cell.get("half_width"))
    return line(signed(Number.at(cell["value"])), *([] if half is None else [" ±", fixed(half)]))


def matrix_sections(folder: Path, file: str, reader: Reader, *, name: str = "matrix") -> list[Section]:
    """One for each model, and one for what failed."""
    found = read_matrix(folder, reader)
    if found is None:
        return [
            Section(
                name, "Matrix", [Missing("The matrix's table", command("lape-ds", "matrix", "run", file))]
            )
        ]
    sections = [
        Section(
            f"{name}-{number}",
            line("Matrix: ", Quoted(model["model"])),
            list(_model_blocks(model, folder, reader, f"{name}-{number}")),
        )
        for number, model in enumerate(found["models"])
    ]
    notes: list[Block] = [Prose(Quoted(note)) for note in found["notes"]]
    unfinished = [cell for cell in found["cells"] if cell["state"].content != "finished"]
    if unfinished:
        notes.append(_unfinished(unfinished))
        again = found["command"].content.replace(" matrix table ", " matrix run ")
        notes.append(Missing("Cells that are not finished", f"{again} --retry"))
    return [*sections, Section(f"{name}-notes", "Matrix: notes", notes)] if notes else sections


def _model_blocks(model: Place, folder: Path, reader: Reader, name: str) -> Iterator[Block]:
    """The picture, the means over languages, then every language."""
    frontier = model.get("frontier")
    svg = None if frontier is None else reader.text(folder / frontier.content)
    if svg is not None:
        title = f"Frontiers of gain and forgetting, {model['model'].content}"
        description = "A panel for each language: to the right more is forgotten, upward more is gained."
        yield Picture(
            inline_picture(svg, name=f"{name}-frontier", title=title, description=description),
            title,
            [_variants(model)],
        )
    else:
        yield _variants(model)
    grids = [*model["grids"]]
    for what, words in (("gain", "Gain on the target"), ("forgetting", "Loss of the other languages")):
        own = [grid for grid in grids if grid["what"].content == what]
        if own:
            yield _means_table(own, words)
    yield Prose(
        "± half of the interval, in parentheses half the range over seeds. ▲ better and ▼ worse, after Holm's correction "
        "over the table. No difference shown is no proof that there is none.",
        is_note=True,
    )
    for grid in grids:
        yield _grid_table(grid, model, grid["rows"], Quoted(grid["title"]))
    for grid in grids:
        against = grid.get("against")
        if against is not None:
            caption = line(Quoted(grid["title"]), ": each less ", Quoted(against["reference"]))
            yield _grid_table(grid, model, against["rows"], caption, is_folded=True)


def _means_table(grids: Sequence[Place], words: str) -> Table:
    """What was measured by methods, in the mean over languages."""
    variants = [row["variant"] for row in grids[0]["rows"]]
    rows = []
    for grid in grids:
        means = {row["variant"].content: row.get("mean") for row in grid["rows"]}
        cells = [_cell(means.get(variant.content), is_stacked=True) for variant in variants]
        rows.append(Row(Quoted(grid["label"]), cells))
    units = {grid["unit"].content: Quoted(grid["unit"]) for grid in grids}
    detail = line(
        "means over languages, each method at its tuned rate unless the row says otherwise; in ",
        joined(units.values(), " or "),
    )
    return Table(words, ["", *(Quoted(variant) for variant in variants)], rows, detail=detail)


def _grid_table(grid: Place, model: Place, rows: Place, caption: Any, *, is_folded: bool = False) -> Table:
    codes = [code.content for code in model["languages"]]
    names = model["language_names"]
    level = grid.get("level")
    at: list[Any] = [] if level is None else ["equal forgetting ", general(Number.at(level)), "; "]
    detail = line(*at, joined([Quoted(grid[key]) for key in ("measured", "unit", "interval")], "; "))
    shown = [
        Row(
            Quoted(row["variant"]),
            [
                *(_cell(row.get("cells", code)) for code in codes),
                _cell(row.get("mean")),
            ],
            is_main=row["variant"].content == _OWN,
        )
        for row in rows
    ]
    headings = ["method", *(Quoted(names[code]) for code in codes), "mean"]
    return Table(caption, headings, shown, is_folded=is_folded, detail=detail)


def _cell(cell: Place | None, *, is_stacked: bool = False) -> Any:
    """A value with its interval, below it where it is stacked."""
    if cell is None:
        return DASH
    value, half = Number.at(cell["value"]), number_at(cell.get("half_width"))
    spread = number_at(cell.get("spread"))
    parts: list[Any] = [signed(value)]
    if half is not None:
        parts += [Markup("<br>") if is_stacked else " ", "±", fixed(half)]
    elif spread is not None:
        parts += [" (±", fixed(spread), ")"]
    verdict = cell.get("verdict")
    tone = "" if verdict is None else TONES.get(verdict.content, "")
    if tone:
        parts.append(" ▲" if (tone == "better") else " ▼")
    return Cell(line(*parts), tone)


def _variants(model: Place) -> Table:
    names = model["language_names"]
    codes = [code.content for code in model["languages"]]
    rows = []
    for variant in model["variants"]:
        cells: list[Any] = []
        for code in codes:
            weights, rate = variant.get("trained_parameters", code), variant.get("tuned_rates", code)
            if weights is None or rate is None:
                cells.append(DASH)
            else:
                cells.append(line(general(Number.at(rate)), " · ", count(Number.at(weights))))
        rows.append(Row(Quoted(variant["name"]), [count(how_many(variant["seeds"].every())), *cells]))
    return Table(
        "Tuned learning rate and weights trained, by language",
        ["method", "seeds", *(Quoted(names[code]) for code in codes)],
        rows,
    )


def _unfinished(cells: Sequence[Place]) -> Table:
    rows = [
        Row(
            Quoted(cell["model"]),
            [
                Quoted(cell["language"]),
                Quoted(cell["variant"]),
                Quoted(cell["state"]),
                line(count(Number.at(cell["num_finished"])), " of ", count(Number.at(cell["num_runs"]))),
                DASH if cell.get("reason") is None else Quoted(cell["reason"]),
            ],
        )
        for cell in cells
    ]
    return Table(
        "Cells that are not finished",
        ["model", "language", "method", "state", "runs", "reason"],
        rows,
        words=(0, 1, 2, 4),
    )
