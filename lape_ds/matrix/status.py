"""`lape-ds matrix status`: how far every cell is, what it took, and about how long the rest will take.

Beside the run, at any time: it only reads. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from rich.console import Console
from rich.table import Table

from lape_ds.languages import find_language
from lape_ds.matrix.states import Cell
from lape_ds.recipe import Matrix
from lape_ds.runlog import readable_duration

_MARKS = {"finished": "[green]done[/]", "waiting": "[dim]–[/]"}


def show_status(matrix: Matrix, cells: Sequence[Cell]) -> None:
    """Prints a row for every language of every model, and below them why cells failed."""
    console = Console()
    for model in matrix.models:
        own = [cell for cell in cells if cell.model == model.name]
        table = Table(title=f"{model.name} (runs finished of those planned)", title_justify="left")
        table.add_column("language")
        variants = list(dict.fromkeys(cell.variant for cell in own))
        for variant in variants:
            table.add_column(variant, justify="right")
        for language in model.languages:
            by_variant = {cell.variant: cell for cell in own if cell.language == language.code}
            marks = [_mark(by_variant[variant]) for variant in variants]
            table.add_row(find_language(language.code).name, *marks)
        console.print(table)
    for line in [*failure_lines(cells), *summary_lines(matrix, cells)]:
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _mark(cell: Cell) -> str:
    if cell.state == "failed":
        return "[red]failed[/]"
    return _MARKS.get(cell.state, f"{cell.num_finished}/{cell.num_runs}")


def failure_lines(cells: Sequence[Cell]) -> list[str]:
    """Each reason once, with the cells that it ended."""
    ended: dict[tuple[str, str, str, str], list[str]] = {}
    for cell in cells:
        if cell.failure is not None:
            reason = cell.model, cell.language, cell.failure.stage, cell.failure.reason
            ended.setdefault(reason, []).append(cell.variant)
    return [
        f"failed: {model}, {language}, {', '.join(variants)}: {stage}: {reason}"
        for (model, language, stage, reason), variants in ended.items()
    ]


def summary_lines(matrix: Matrix, cells: Sequence[Cell]) -> list[str]:
    """How many cells are done, what they took, how long the others may take."""
    numbers = {
        state: sum(cell.state == state for cell in cells)
        for state in ("finished", "failed", "begun", "waiting")
    }
    told = ", ".join(f"{number} {state}" for state, number in numbers.items() if number)
    lines = [f"{len(cells)} cells: {told}"]
    used = sum(cell.seconds for cell in cells)
    if used:
        lines.append(f"time of the trainings so far: {readable_duration(used)} of one worker")
    left = seconds_left(cells)
    if left is not None and left > 0:
        workers = matrix.section.sweep.workers
        side_by_side = (
            f", {readable_duration(left / workers)} with sweep.workers: {workers}" if workers > 1 else ""
        )
        lines.append(
            f"left, by the mean of the finished runs of each method: {readable_duration(left)} of one worker{side_by_side}; "
            "identification and measuring are not in it"
        )
    if numbers["failed"]:
        lines.append("`lape-ds matrix run … --retry` tries the failed ones again")
    return lines


def seconds_left(cells: Sequence[Cell]) -> float | None:
    """Of the runs that are not finished, at what one of the method took in that model, or in any; None if none is finished."""
    known = _seconds_of_a_run(cells)
    if not known:
        return None
    left = 0.0
    for cell in cells:
        missing = cell.num_runs - cell.num_finished
        if missing and cell.state != "failed":
            own = known.get((cell.model, cell.variant))
            model = [seconds for (name, _), seconds in known.items() if name == cell.model]
            left += missing * (own if own is not None else fmean(model or known.values()))
    return left


def _seconds_of_a_run(cells: Sequence[Cell]) -> Mapping[tuple[str, str], float]:
    """By model and variant, of cells whose runs are all finished."""
    found: dict[tuple[str, str], list[float]] = {}
    for cell in cells:
        if cell.num_finished == cell.num_runs:
            found.setdefault((cell.model, cell.variant), []).append(cell.seconds / cell.num_runs)
    return {key: fmean(seconds) for key, seconds in found.items()}
