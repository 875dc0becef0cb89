"""What a suite says wrong of the harness's tasks, found before any data is read or a model is loaded.

In the evaluation room, after the index of tasks, by what the tasks' YAML says. What only shows once a task is built with its
documents (numbers of examples, filters, groups that cannot be pooled) is told by `tasks.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from lape_ds.errors import UserError, refuse
from lape_ds.evaluation.harness_tasks import all_tasks, find_task, is_single, metric_directions
from lape_ds.evaluation.suites import PlannedTask, Suite, plan
from lape_ds.languages import all_languages

_NAMED = 4  # languages in a line


def check_planned(planned: Iterable[PlannedTask]) -> None:
    """Refuses tasks that the harness does not have, and metrics that those do not have: a line for each.

    Args:
        planned: Of one or more suites; a task that two of them read by unlike metrics is there twice.

    Raises:
        UserError: The last of them; the others are printed before it.
    """
    faults: dict[tuple[str, ...], str] = {}
    for one in planned:
        key = (*one.suites, one.title)
        # Of a task in many languages the first fault is enough: to look for the nearest name takes long.
        if key not in faults and (fault := _fault(one)) is not None:
            faults[key] = fault
    refuse(list(faults.values()))


def check_suite(suite: Suite) -> list[str]:
    """The same of a whole suite, whatever languages it will be run for.

    Returns:
        Lines about tasks whose names hold a placeholder and that the harness has in some languages only, where the suite does not
        say which.

    Raises:
        UserError: As `check_planned`, also where a suite names a language for a task that the harness does not have in it.
    """
    by_title: dict[str, list[PlannedTask]] = {}
    for one in plan(suite, [language.code for language in all_languages()]):
        by_title.setdefault(one.title, []).append(one)
    chosen: list[PlannedTask] = []
    notes: list[str] = []
    for title, planned in by_title.items():
        there = [one for one in planned if is_single(one.harness_task)]
        there = there or [one for one in planned if one.harness_task in all_tasks()]
        lacking = [one for one in planned if one not in there]
        chosen += there[:1] or planned[:1]
        if there and lacking and suite.tasks[title].languages is not None:
            chosen.append(lacking[0])
        elif there and lacking:
            codes = ", ".join(one.language for one in lacking[:_NAMED])
            more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
            notes.append(
                f"{title}: lm-eval has {suite.tasks[title].task} in {len(there)} of {len(planned)} languages, not in {codes}"
                f"{more}: name those that it has under the task's `languages`"
            )
    check_planned(chosen)
    return notes


def _fault(planned: PlannedTask) -> str | None:
    """What is wrong with a task in one line, or None."""
    where, spec = f"suite task {planned.title!r}", planned.spec
    try:
        entry, index = find_task(planned.harness_task, where=where)
    except UserError as error:
        return str(error)
    directions = metric_directions(entry, index)
    if directions is None:
        return None
    if spec.metric not in directions:
        return f"{where}: {planned.harness_task} has no metric {spec.metric!r} but {', '.join(directions)}"
    if directions[spec.metric] != (spec.direction == "higher"):
        return f"{where}: direction {spec.direction!r} is the wrong way round for {spec.metric}"
    return None
