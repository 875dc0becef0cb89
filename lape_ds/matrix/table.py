"""`lape-ds matrix table`: what all cells of a matrix say together, as JSON, Markdown, pictures and on the terminal.

Last of the room. Can be made at any time; what is not there yet is told.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lape_ds import __version__
from lape_ds.analysis.sweep.panels import draw_panels
from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.markdown import markdown_table
from lape_ds.matrix.grids import Grid, Row, Value
from lape_ds.matrix.heldout_grids import Swept, heldout_grids, read_swept
from lape_ds.matrix.states import Cell, check_settings, read_cells
from lape_ds.matrix.suite_grids import suite_grids
from lape_ds.recipe import Matrix
from lape_ds.writing import whole_file, write_json, write_text

SCHEMA_VERSION = 1
NOTHING = "–"
CAPTION = (
    "± half of the 95 % interval where there is one: of held-out text over languages, of a suite's tasks over documents; (…) "
    "half the range over seeds; \\* less than 5 % by chance, Holm over that table alone; **bold** the best mean; "
    f"{NOTHING} not measured, or outside what was measured."
)


@dataclass(frozen=True)
class ModelTable:
    """What is known of one model.

    Attributes:
        swept: Its sweeps.
        grids: One table each.
    """

    swept: Swept
    grids: list[Grid]

    @property
    def name(self) -> str:
        """The model's."""
        return self.swept.model.name


@dataclass(frozen=True)
class MatrixTable:
    """All of a matrix.

    Attributes:
        matrix: The matrix.
        cells: How far each is.
        models: Those with a finished run.
        notes: What a reader must know, a sentence each.
    """

    matrix: Matrix
    cells: list[Cell]
    models: list[ModelTable]
    notes: list[str]


def make_table(matrix: Matrix) -> MatrixTable:
    """Reads everything.

    Raises:
        UserError: No run is finished, or what is there does not fit together.
    """
    check_settings(matrix)
    cells = read_cells(matrix)
    models = []
    for model in matrix.models:
        swept = read_swept(model)
        if swept.results:
            grids = [*heldout_grids(swept), *(suite_grids(model) if matrix.section.eval is not None else [])]
            models.append(ModelTable(swept, grids))
    if not models:
        raise UserError(
            f"no run of this matrix is finished under {matrix.output_dir}; `lape-ds matrix run` first"
        )
    return MatrixTable(matrix, cells, models, _notes(cells, models))


def _notes(cells: Sequence[Cell], models: Sequence[ModelTable]) -> list[str]:
    done, planned = sum(cell.num_finished for cell in cells), sum(cell.num_runs for cell in cells)
    unfinished = Counter(cell.state for cell in cells if cell.state != "finished")
    notes = []
    if unfinished:
        told = ", ".join(f"{number} {state}" for state, number in sorted(unfinished.items()))
        notes.append(
            f"Provisional: {done} of {planned} runs are finished; of {len(cells)} cells {told} (`lape-ds matrix status`)."
        )
    for model in models:
        for code, results in model.swept.results.items():
            notes += [
                f"{model.name}, {find_language(code).name}: {note}"
                for note in results.notes
                if not note.startswith("Provisional")
            ]
        notes += [_measured_languages(model.swept), *_edges(model.swept)]
    notes.append(
        "The tuned rate of a method in a language is that of its rates with the lowest held-out bits per byte of the target "
        "after the last step, in the mean over seeds; the gain during training is of that same text, so it is a little too "
        "large for every method alike, and so is a suite's `heldout_bits_per_byte`, which is of these documents too; other tasks "
        "are of other text."
    )
    if any(model.swept.model.recipe.model.create is not None for model in models):
        notes.append(
            "A tiny model made minutes ago shows the machine at work; it is no evidence about large ones."
        )
    return notes


def _measured_languages(swept: Swept) -> str:
    codes = dict.fromkeys(
        code for language in swept.model.languages for code in language.runs[0].recipe.train.heldout.languages
    )
    names = ", ".join(find_language(code).name for code in codes)
    return f"{swept.model.name}: forgetting during training is measured on {names}, less the target."


def _edges(swept: Swept) -> list[str]:
    """Methods whose best rate is the last that was tried on one side: nobody knows what lies beyond."""
    found = []
    for side, last in (("highest", max), ("lowest", min)):
        told = []
        for variant in swept.variants:
            rates = {run.learning_rate for run in swept.model.languages[0].runs_of(variant)}
            tuned = [own[variant] for own in swept.tuned.values() if variant in own]
            at_edge = tuned.count(last(rates)) if len(rates) > 1 else 0
            if at_edge:
                told.append(f"{variant} ({at_edge} of {len(tuned)} languages)")
        if told:
            found.append(
                f"{swept.model.name}: the tuned rate is the {side} that was swept for {', '.join(told)}; beyond it may be more."
            )
    return found


def write_table(table: MatrixTable) -> Path:
    """Writes `table.json`, `table.md` and a picture of the frontiers for each model; gives their folder."""
    folder = table.matrix.output_dir
    for model in table.models:
        for format in ("png", "svg"):
            with whole_file(folder / _picture(model, format)) as temporary:
                draw_panels(list(model.swept.results.values()), temporary, format=format, title=model.name)
    write_json(folder / "table.json", as_json(table))
    write_text(folder / "table.md", markdown(table))
    return folder


def _picture(model: ModelTable, format: str) -> str:
    return f"frontier-{model.name}.{format}"


def as_json(table: MatrixTable) -> dict[str, Any]:
    """Everything, in full precision."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "matrix",
        "name": table.matrix.section.name,
        "command": " ".join(["lape-ds", *sys.argv[1:]]),
        "lape_ds_version": __version__,
        "notes": table.notes,
        "cells": [_cell_json(cell) for cell in table.cells],
        "models": [_model_json(model) for model in table.models],
    }


def _cell_json(cell: Cell) -> dict[str, Any]:
    content = asdict(cell)
    failure = content.pop("failure")
    return content | {
        "reason": None if failure is None else f"{failure['stage']}: {failure['reason']}",
    }


def _model_json(model: ModelTable) -> dict[str, Any]:
    swept = model.swept
    return {
        "model": model.name,
        "folder": swept.model.recipe.output_dir.name,
        "frontier": _picture(model, "svg"),
        "languages": swept.codes,
        "language_names": {code: find_language(code).name for code in swept.codes},
        "variants": [_variant_json(swept, variant) for variant in swept.variants],
        "grids": [_grid_json(grid) for grid in model.grids],
    }


def _variant_json(swept: Swept, variant: str) -> dict[str, Any]:
    runs = swept.model.languages[0].runs_of(variant)
    parameters = {code: results.trained_parameters for code, results in swept.results.items()}
    return {
        "name": variant,
        "method": runs[0].recipe.train.method,
        "seeds": list(dict.fromkeys(run.seed for run in runs)),
        "trained_parameters": {
            code: found[variant] for code, found in parameters.items() if variant in found
        },
        "tuned_rates": {code: rates[variant] for code, rates in swept.tuned.items() if variant in rates},
    }


def _grid_json(grid: Grid) -> dict[str, Any]:
    content = asdict(grid)
    rows, reference = content.pop("against"), content.pop("reference")
    return content | {"against": None if reference is None else {"reference": reference, "rows": rows}}


def markdown(table: MatrixTable) -> str:
    """The whole page, pictures above their model's tables."""
    parts = [f"# {table.matrix.section.name}", *table.notes, CAPTION]
    for model in table.models:
        parts += [f"## {model.name}", f"![gain against forgetting]({_picture(model, 'png')})"]
        parts.append(markdown_table(*_rates(model.swept)))
        for grid in model.grids:
            parts += [f"### {grid.title}", f"{_unit_line(grid)}", markdown_table(*_cells(grid, grid.rows))]
            if grid.reference is not None:
                parts += [
                    f"The same less that of {grid.reference}:",
                    markdown_table(*_cells(grid, grid.against)),
                ]
    failed = [cell for cell in table.cells if cell.state == "failed"]
    if failed:
        parts += ["## Failed", markdown_table(*_failures(failed), num_left=5)]
    return "\n\n".join(parts) + "\n"


def _unit_line(grid: Grid) -> str:
    return f"In {grid.unit}, {grid.better} is better; measured: {grid.measured}; {grid.interval}."


def _rates(swept: Swept) -> tuple[list[str], list[list[str]]]:
    head = ["method", *(f"{find_language(code).name}: weights, tuned rate" for code in swept.codes)]
    body = []
    for variant in swept.variants:
        cells = []
        for code in swept.codes:
            rate = swept.tuned.get(code, {}).get(variant)
            if rate is None:
                cells.append(NOTHING)
            else:
                cells.append(f"{swept.results[code].trained_parameters[variant]:,}, {rate:g}")
        body.append([variant, *cells])
    return head, body


def _cells(grid: Grid, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    codes = list(rows[0].cells)
    head = ["method", *(find_language(code).name for code in codes), "mean"]
    best = best_mean(grid, rows)
    return head, [
        [
            row.variant,
            *(_escaped(value_text(row.cells[code])) for code in codes),
            _bold(_escaped(value_text(row.mean)), row.mean is not None and row.mean.value == best),
        ]
        for row in rows
    ]


def best_mean(grid: Grid, rows: Sequence[Row]) -> float | None:
    """The best mean over languages."""
    means = [row.mean.value for row in rows if row.mean is not None]
    return (max if grid.better == "higher" else min)(means, default=None)


def value_text(value: Value | None) -> str:
    """E.g. `+0.412 ±0.020*`."""
    if value is None:
        return NOTHING
    text = f"{round(value.value, 3) + 0.0:+.3f}"  # no -0.000
    if value.half_width is not None:
        text += f" ±{value.half_width:.3f}"
    elif value.spread is not None:
        text += f" ({value.spread:.3f})"
    return text + ("*" if value.verdict in ("better", "worse") else "")


def _escaped(text: str) -> str:
    """A star that Markdown takes for one."""
    return text.replace("*", r"\*")


def _bold(text: str, is_best: bool) -> str:
    return f"**{text}**" if is_best else text


def _failures(cells: Sequence[Cell]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [cell.model, cell.language, cell.variant, cell.failure.stage, cell.failure.reason.replace("|", r"\|")]
        for cell in cells
        if cell.failure is not None
    ]
    return ["model", "language", "method", "stage", "reason"], rows


def show_table(table: MatrixTable) -> None:
    """Prints the means over languages, for each model what was gained and what was lost: the cells do not fit a terminal."""
    console = Console()
    for model in table.models:
        over = f"means over {len(model.swept.codes)} languages"
        console.print(f"\n[bold]{model.name}: {over}, each method at its tuned rate[/]", soft_wrap=True)
        for what, title in (("gain", "Gain on the target"), ("forgetting", "Loss of the other languages")):
            grids = [grid for grid in model.grids if grid.what == what]
            if grids:
                console.print(_means(grids, model.swept.variants, title))
    console.print(CAPTION.replace("**", "").replace("\\", ""))
    for note in table.notes:
        console.print(note)


def _means(grids: Sequence[Grid], variants: Sequence[str], title: str) -> Table:
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for variant in variants:
        shown.add_column(variant, justify="right", no_wrap=True)
    for grid in grids:
        means = {row.variant: row.mean for row in grid.rows}
        best = best_mean(grid, grid.rows)
        cells = []
        for variant in variants:
            mean = means.get(variant)
            text = value_text(mean).replace(" ", "\n")
            cells.append(f"[bold]{text}[/]" if mean is not None and mean.value == best else text)
        shown.add_row(f"{grid.label}\n[dim]{grid.unit}[/]", *cells)
    return shown
