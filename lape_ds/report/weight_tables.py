"""The numbers of weight updates as tables.

Beside analyses.py, which puts them around the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lape_ds.analysis.training.results import common_parent
from lape_ds.report.analysis_files import read_analysis_file, stale_note
from lape_ds.report.blocks import Block, Cell, Missing, Row, Table, command
from lape_ds.report.numbers import (
    Code,
    Number,
    Quoted,
    count,
    fixed,
    general,
    line,
    number_at,
    percent,
    signed,
)
from lape_ds.report.runs import Run
from lape_ds.report.setup import DASH
from lape_ds.report.sources import Place, Reader

_HEADINGS = ["‖ΔW‖/‖W‖", "share changed", "‖ΔW‖/‖W‖ there", "cosine with W", "effective rank", "stable rank"]


def updates_tables(found: Mapping[Run, Place]) -> list[Table]:
    """A row for each part that changed and for the whole model, run by run."""
    tables = []
    for run, place in found.items():
        parts = [part for _, part in place["parts"].items() if part["num_changed"].content]
        rows = [Row(Code(part["part"].content), _cells(part)) for part in parts]
        rows.append(Row("all weights", _cells(place["total"], with_ranks=False), is_total=True))
        caption = line(
            Code(run.label), ": change of the weights over all layers, compared in ", Quoted(place["dtype"]),
            "; ranks: mean over the matrices that changed",
        )  # fmt: skip
        tables.append(Table(caption, ["part", *_HEADINGS], rows))
    return tables


def updates_data(found: Mapping[Run, Place]) -> list[Table]:
    """Every part of every layer that changed."""
    return [_layers(run, place) for run, place in found.items()]


def _layers(run: Run, place: Place) -> Table:
    rows = [
        Row(
            line(
                *(
                    ["layer ", count(Number.at(part["layer"])), ", "]
                    if part["layer"].content is not None
                    else []
                ),
                Code(part["part"].content),
            ),
            _cells(part),
        )
        for part in place["layers"]
        if part["num_changed"].content
    ]
    return Table(line(Code(run.label), ": by layer"), ["part", *_HEADINGS], rows)


def _cells(part: Place, *, with_ranks: bool = True) -> list[Any]:
    relative, there = number_at(part.get("relative")), number_at(part.get("relative_to_changed"))
    cosine = number_at(part.get("cosine"))
    ranks = [number_at(part.get(name)) for name in ("effective_rank", "stable_rank")]
    return [
        DASH if relative is None else general(relative, 3),
        percent(Number.at(part["share_changed"])),
        DASH if there is None else general(there, 3),
        DASH if cosine is None else signed(cosine),
        *(DASH if rank is None or not with_ranks else fixed(rank, 1) for rank in ranks),
    ]


def direction_blocks(found: Mapping[Run, Place], reader: Reader) -> list[Block]:
    """Cosines between the updates of several runs, which their joint analysis has."""
    if len(found) < 2:
        return []
    folders = [run.folder for run in found]
    parent = common_parent(folders)
    named = {str(run.folder.relative_to(parent)): run for run in found}
    again = command("lape-ds", "analyze", *folders, "--only", "updates")
    place = read_analysis_file(parent / "analysis" / "directions.json", again, reader)
    if place is None or not named.keys() <= set(place["runs"].content):
        return [Missing("Angles between the weight updates of the runs", again)]
    chosen = {index: named[name] for index, name in enumerate(place["runs"].content) if name in named}
    models = {run: place["inputs"][1 + index] for index, run in chosen.items()}  # behind the base
    notes = (stale_note(run, [model], again, reader) for run, model in models.items())
    return [*(note for note in notes if note is not None), _directions(place, list(chosen))]


def _directions(place: Place, chosen: Sequence[int]) -> Table:
    runs = place["runs"].content
    rows = [
        Row(
            Code(Path(runs[row]).as_posix()), [_cosine(place["cosine"][row].get(column)) for column in chosen]
        )
        for row in chosen
    ]
    headings = ["run", *(Code(runs[column]) for column in chosen)]
    return Table("Cosine between the changes that two runs made, all weights", headings, rows)


def _cosine(place: Place | None) -> Any:
    return DASH if place is None else Cell(signed(Number.at(place)), heat=place.content)
