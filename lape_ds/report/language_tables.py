"""The numbers of alignment, activations and overlap as tables.

Beside analyses.py, which puts them around the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from lape_ds.analysis.alignment.numbers import MEAN_NAMES, MEASURE_NAMES
from lape_ds.analysis.training.activations import GROUP_NAMES
from lape_ds.languages import find_language
from lape_ds.report.blocks import Row, Table
from lape_ds.report.numbers import (
    Code,
    Line,
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
from lape_ds.report.sources import Place


def alignment_tables(found: Mapping[Run, Place]) -> list[Table]:
    """Means over layers before and after, run by run; every pair behind a fold."""
    tables = []
    for run, place in found.items():
        rows = [Row(MEAN_NAMES[name], _measures(measures)) for name, measures in place["means"].items()]
        caption = line(
            Code(run.label), ": means over layers, before → after, and the change ± half of its interval; ",
            count(Number.at(place["num_sentences"])), " sentences of ", Quoted(place["source"]),
        )  # fmt: skip
        headings = [
            "pairs",
            *(heading for name in MEASURE_NAMES.values() for heading in (_mentioned(name), "change")),
        ]
        tables.append(Table(caption, headings, rows))
        pairs = [
            Row(
                f"{find_language(pair['language'].content).name} – {find_language(pair['other'].content).name}",
                _measures(pair["measures"]),
            )
            for pair in place["pairs"]
        ]
        tables.append(
            Table(line(Code(run.label), ": every pair of languages"), headings, pairs, is_folded=True)
        )
    return tables


def _mentioned(name: str) -> Any:
    return Code(name) if "@" in name else name


def _measures(measures: Place) -> list[Any]:
    cells: list[Any] = []
    for name in MEASURE_NAMES:
        found = measures[name]
        before, after = Number.at(found["mean_before"]), Number.at(found["mean_after"])
        half = number_at(found.get("mean_half_width"))
        change = line(signed(after - before), *([] if half is None else [" ±", fixed(half)]))
        cells += [line(fixed(before), " → ", fixed(after)), change]
    return cells


def alignment_data(found: Mapping[Run, Place]) -> list[Table]:
    """Layer by layer, with what shuffled pairs would give."""
    tables = []
    for run, place in found.items():
        for name, measures in place["means"].items():
            rows = [
                Row(_layer(layer), [_before_after(measures[measure], layer) for measure in MEASURE_NAMES])
                for layer in range(len(measures["cka"]["before"]))
            ]
            caption = line(
                Code(run.label), f": by layer, {MEAN_NAMES[name]}, before → after; in brackets what shuffled pairs give (of the "
                "cosine: the anisotropy)",
            )  # fmt: skip
            headings = ["layers behind", *(_mentioned(one) for one in MEASURE_NAMES.values())]
            tables.append(Table(caption, headings, rows))
    return tables


def _layer(layer: int) -> Any:
    """After how many layers; a place in a list, which is in no file."""
    return "embeddings" if layer == 0 else Code(str(layer))


def _before_after(found: Place, layer: int) -> Line:
    before, after = Number.at(found["before"][layer]), Number.at(found["after"][layer])
    chances = [fixed(Number.at(found[key][layer])) for key in ("chance_before", "chance_after")]
    return line(fixed(before), " → ", fixed(after), " [", chances[0], " → ", chances[1], "]")


def activations_tables(found: Mapping[Run, Place]) -> list[Table]:
    """Mean p(gate > 0) of each group of neurons by language, run by run."""
    tables = []
    for run, place in found.items():
        groups = place["changes"].names()
        trained = [code for code in place["num_tokens"].names() if code in run.trained]
        rows = [
            Row(
                find_language(code).name,
                [cell for group in groups for cell in _group_cells(place["changes"][group].get(code))],
                is_main=code in trained,
            )
            for code in place["num_tokens"].names()
        ]
        headings: list[Any] = ["text of"]
        for group in groups:
            number = count(Number.at(place["num_neurons"][group]))
            headings += [line(GROUP_NAMES[group], " (", number, ")"), "change", "rise"]
        caption = line(
            Code(run.label),
            ": mean probability that a gate is active, before → after; share of neurons that rise",
        )
        tables.append(Table(caption, headings, rows))
    return tables


def _group_cells(change: Place | None) -> list[Any]:
    if change is None:
        return [DASH] * 3
    half = number_at(change.get("half_width"))
    return [
        line(fixed(Number.at(change["before"])), " → ", fixed(Number.at(change["after"]))),
        line(signed(Number.at(change["change"]), 4), *([] if half is None else [" ±", fixed(half, 4)])),
        percent(Number.at(change["rising"]), 0),
    ]


def activations_data(found: Mapping[Run, Place]) -> list[Table]:
    """How many neurons changed by how much, and the mean change by layer, on the trained languages' text."""
    tables = []
    for run, place in found.items():
        changes = place["changes"]
        for code in (code for code in run.trained if code in place["num_tokens"]):
            name = find_language(code).name
            groups = [group for group in changes.names() if code in changes[group]]
            bins = [
                Row(
                    line(general(Number.at(low)), " to ", general(Number.at(high))),
                    [count(Number.at(changes[group][code]["histogram"][index])) for group in groups],
                )
                for index, (low, high) in enumerate(pairwise(place["edges"]))
            ]
            headings = [GROUP_NAMES[group] for group in groups]
            tables.append(
                Table(line(Code(run.label), f": neurons by change on {name}"), ["change", *headings], bins)
            )
            layers = [
                Row(
                    Code(str(layer)),
                    [_optional(changes[group][code]["by_layer"].get(layer)) for group in groups],
                )
                for layer in range(len(changes[groups[0]][code]["by_layer"]))
            ]
            tables.append(
                Table(line(Code(run.label), f": mean change on {name}"), ["layer", *headings], layers)
            )
    return tables


def _optional(place: Place | None) -> Any:
    return DASH if place is None else signed(Number.at(place), 4)


def overlap_tables(found: Mapping[Run, Place]) -> list[Table]:
    """What the trained neurons share with each language's, run by run."""
    tables = []
    for run, place in found.items():
        rows = [
            Row(
                find_language(one["code"].content).name,
                [
                    Quoted(one["family"]),
                    count(Number.at(one["neurons"])),
                    count(Number.at(one["shared"])),
                    fixed(Number.at(one["expected"]), 1),
                    percent(Number.at(one["share_of_trained"]), 1),
                    fixed(Number.at(one["jaccard"])),
                ],
                is_main=one["code"].content in run.trained,
            )
            for one in place["sets"]
        ]
        caption = line(
            Code(run.label), ": trained neurons ", count(Number.at(place["num_neurons"])), " of ",
            count(Number.at(place["num_model_neurons"])), ", of which no other has ", count(Number.at(place["exclusive"])),
        )  # fmt: skip
        headings = ["language", "family", "its neurons", "shared", "by chance", "of the trained", "Jaccard"]
        tables.append(Table(caption, headings, rows, words=(0,)))
    return tables


def overlap_data(found: Mapping[Run, Place]) -> list[Table]:
    """Trained neurons by layer."""
    return [
        Table(
            line(Code(run.label), ": trained neurons by layer"),
            ["layer", "neurons"],
            [
                Row(Code(str(layer)), [count(Number.at(number))])
                for layer, number in enumerate(place["per_layer"])
            ],
        )
        for run, place in found.items()
    ]
