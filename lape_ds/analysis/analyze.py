"""`lape-ds analyze`: runs the analyses of one run or several, writes each, and shows them side by side.

Above the analyses, which it knows by name; each is imported when it is wanted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lape_ds.analysis.alignment.numbers import ParallelRequest
from lape_ds.analysis.training.results import (
    ANALYSES,
    Result,
    analysis_dir,
    common_parent,
    write_analysis,
    write_files,
)
from lape_ds.analysis.training.run import AnalyzedRun, open_runs
from lape_ds.errors import UserError

_LOG_WIDTH = 160  # a log has no width of its own, and tables of a dozen figures do not fit 80 columns


@dataclass(frozen=True)
class Analysis:
    """What `analyze` needs of one analysis. In `draw` and `table` one run is a sequence of one.

    Attributes:
        measure: A run's result; raises UserError where the run lacks what it takes.
        draw: Draws the picture of results into a file, `draw(results, path, format=…)`.
        table: Of results, for the terminal.
        joint: Of several runs, what only all of them together show: writes into the folder, gives tables.
    """

    measure: Callable[[AnalyzedRun], Any]
    draw: Callable[..., None]
    table: Callable[[Any], Table]
    joint: Callable[[Sequence[AnalyzedRun], Path], Sequence[Table]] = field(default=lambda _runs, _folder: ())


def analysis_named(name: str, parallel: ParallelRequest) -> Analysis:
    """One of the analyses, whose modules are imported now.

    Args:
        name: Of `ANALYSES`.
        parallel: Which sentences the alignment takes.
    """
    match name:
        case "dynamics":
            from lape_ds.analysis.training.dynamics import dynamics_table, read_dynamics
            from lape_ds.analysis.training.dynamics_picture import draw_dynamics

            return Analysis(read_dynamics, draw_dynamics, dynamics_table)
        case "alignment":
            from lape_ds.analysis.alignment.measure import measure_alignment
            from lape_ds.analysis.alignment.numbers import alignment_table
            from lape_ds.analysis.alignment.picture import draw_alignment

            return Analysis(partial(measure_alignment, request=parallel), draw_alignment, alignment_table)
        case "activations":
            from lape_ds.analysis.training.activation_measures import measure_activations
            from lape_ds.analysis.training.activations import activations_table
            from lape_ds.analysis.training.activations_picture import draw_activations

            return Analysis(measure_activations, draw_activations, activations_table)
        case "updates":
            from lape_ds.analysis.training.update_measures import measure_updates
            from lape_ds.analysis.training.updates import updates_table
            from lape_ds.analysis.training.updates_picture import draw_updates

            return Analysis(measure_updates, draw_updates, updates_table, _report_directions)
        case "overlap":
            from lape_ds.analysis.training.trained_overlap import (
                measure_trained_overlap,
                trained_overlap_table,
            )
            from lape_ds.analysis.training.trained_overlap_picture import draw_trained_overlap

            return Analysis(measure_trained_overlap, draw_trained_overlap, trained_overlap_table)
        case _:
            raise AssertionError(f"{name} is among ANALYSES and not here")


def analyze(
    run_dirs: Sequence[Path],
    *,
    only: Sequence[str] = (),
    output: Path | None = None,
    parallel: ParallelRequest | None = None,
) -> None:
    """Makes the analyses of runs: each run's in `RUN/analysis`; of several also their joint tables, pictures and data.

    Args:
        run_dirs: Folders of training runs.
        only: Names of analyses; with none given all are made, and one for which a run lacks something is left out and told.
        output: Where the joint ones go; `analysis` in the nearest folder that holds all runs if not given.
        parallel: Which sentences the alignment takes; the usual ones if not given.

    Raises:
        UserError: An unknown analysis, no such run, or a run lacks what an analysis that was asked for by name takes.
    """
    unknown = [name for name in only if name not in ANALYSES]
    if unknown:
        raise UserError(f"--only {unknown[0]}: no such analysis; allowed: {', '.join(ANALYSES)}")
    if parallel is not None and only and "alignment" not in only:
        raise UserError(
            "--parallel and --sentences are for the alignment, which --only does not name: remove them"
        )
    runs = open_runs(run_dirs)
    if output is not None and len(runs) == 1:
        raise UserError(
            f"--output is for what several runs show together; one run's analyses go to {analysis_dir(runs[0].run_dir)}"
        )
    folder = output or (common_parent(run_dirs) / "analysis" if len(runs) > 1 else None)
    console = Console()
    console = console if console.is_terminal else Console(width=_LOG_WIDTH)
    made = [
        _make(
            name,
            analysis_named(name, parallel or ParallelRequest()),
            runs,
            folder,
            console,
            by_name=bool(only),
        )
        for name in only or ANALYSES
    ]
    if not any(made):
        raise UserError("none of the analyses could be made: see the lines above")
    places = [*(analysis_dir(run.run_dir) for run in runs), *([] if folder is None else [folder])]
    console.print(f"data and pictures: {', '.join(map(str, places))}", soft_wrap=True, highlight=False)


def _make(
    name: str,
    analysis: Analysis,
    runs: Sequence[AnalyzedRun],
    folder: Path | None,
    console: Console,
    *,
    by_name: bool,
) -> bool:
    """One analysis of all runs; whether there was any that had what it takes."""
    done: list[tuple[AnalyzedRun, Result]] = []
    for run in runs:
        try:
            result = analysis.measure(run)
        except UserError as error:
            if by_name:
                raise
            print(f"left out: {name} of {run.name}: {error}", file=sys.stderr, flush=True)
            continue
        write_analysis(analysis_dir(run.run_dir), name, [result], partial(_draw, analysis, [result]))
        done.append((run, result))
    if not done:
        return False
    results = [result for _, result in done]
    console.print(analysis.table(results))
    if folder is not None:
        write_analysis(folder, name, results, partial(_draw, analysis, results), joint=True)
        for table in analysis.joint([run for run, _ in done], folder):
            console.print(table)
    return True


def _report_directions(runs: Sequence[AnalyzedRun], folder: Path) -> Sequence[Table]:
    """Angles between the weight updates of several runs, which only all of them together have."""
    from lape_ds.analysis.training.update_measures import measure_directions
    from lape_ds.analysis.training.updates import directions_table
    from lape_ds.analysis.training.updates_picture import draw_directions

    if len(runs) < 2:
        return ()
    try:
        found = measure_directions(runs)
    except UserError as error:  # each run's own updates are there all the same
        print(f"left out: angles between weight updates: {error}", file=sys.stderr, flush=True)
        return ()
    write_files(
        folder,
        "directions",
        found.as_json(),
        found.rows(),
        lambda path, format: draw_directions(found, path, format=format),
    )
    return (directions_table(found),)


def _draw(analysis: Analysis, results: Sequence[Result], path: Path, format: str) -> None:
    analysis.draw(results, path, format=format)
