"""Models side by side on the terminal: one row per task and language, one column per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from lape_ds.errors import UserError
from lape_ds.evaluation.results import Score, TaskResult
from lape_ds.evaluation.suites import PlannedTask

_ARROWS = {"higher": "↑", "lower": "↓"}


def side_by_side(
    planned: Sequence[PlannedTask], results: Mapping[str, Mapping[str, TaskResult]], *, title: str
) -> Table:
    """A table of scores ± standard error, and below each the difference from the first model.

    Two lines a row, so that three models fit on a terminal of 90 columns: a table that cuts off its numbers is none.

    Args:
        planned: The rows, in order.
        results: Label -> task name -> result (tasks that have failed are not there); the first label is what the others are
            compared with.
        title: Above the table.

    Raises:
        UserError: A result lacks the metric that a row shows: it was measured for a suite that reads another.
    """
    table = Table(title=title, caption="± standard error over documents; (difference from the first model)")
    for heading in ("task", "language", "chance"):
        table.add_column(heading, justify="right" if heading == "chance" else "left", no_wrap=True)
    for label in results:
        table.add_column(label, justify="right", no_wrap=True)
    labels = list(results)
    for row, one in enumerate(planned):
        found = [results[label].get(one.name) for label in labels]
        scores = [None if result is None else _score(result, one) for result in found]
        chance = one.spec.random_baseline
        cells = [_cell(score, scores[0] if column else None, one) for column, score in enumerate(scores)]
        table.add_row(
            f"{one.title} {_ARROWS[one.spec.direction]}\n{_measure(one, found)}",
            one.language,
            "–" if chance is None else f"{chance:.3f}",
            *cells,
            end_section=row + 1 == len(planned) or planned[row + 1].title != one.title,
        )
    return table


def _score(result: TaskResult, planned: PlannedTask) -> Score:
    metric = planned.spec.metric
    if metric not in result.scores:
        suites = f" in suite {', '.join(planned.suites)}" if planned.suites else ""
        raise UserError(
            f"{planned.title}{suites}: {result.task} was measured and has no finite {metric} but "
            f"{', '.join(result.scores)}: name one of these as its metric, or run the suite alone"
        )
    return result.scores[metric]


def _measure(planned: PlannedTask, found: Sequence[TaskResult | None]) -> str:
    metric = [] if planned.spec.metric == planned.title else [planned.spec.metric]
    num_documents = [f"n {result.num_documents}" for result in found if result is not None]
    return f"[dim]{', '.join([*metric, *num_documents[:1]])}[/dim]"


def _cell(score: Score | None, first: Score | None, planned: PlannedTask) -> str:
    if score is None:
        return "[red]failed[/red]"
    text = f"{score.value:.3f}" + ("" if score.stderr is None else f" ±{score.stderr:.3f}")
    if first is None:
        return text
    difference = score.value - first.value
    better = (difference > 0) == (planned.spec.direction == "higher")
    colour = "dim" if difference == 0 else "green" if better else "red"
    return f"{text}\n[{colour}]({difference:+.3f})[/{colour}]"
