"""The harness's tasks in a suite's settings.

In the evaluation room, between the suites and the harness that runs them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from typing import Any

from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from lape_ds.errors import UserError
from lape_ds.evaluation.suites import PlannedTask
from lape_ds.resources import asset

FEWSHOT_SEED = 1234


def build_task(planned: PlannedTask) -> Task:
    """The harness's task with its documents, in the suite's settings.

    Raises:
        UserError: The harness knows no such task, or the suite's metric or direction is not the task's.
    """
    # Only our own tasks are indexed: the harness's take seconds. The metadata is what the task's document
    # function is called with, and how it learns its language.
    metadata: dict[str, Any] = dict(planned.metadata)
    manager = TaskManager(include_path=str(asset("eval/tasks")), include_defaults=False, metadata=metadata)
    where = f"suite task {planned.title!r}"
    if planned.harness_task not in manager.all_subtasks:
        near = difflib.get_close_matches(planned.harness_task, manager.all_subtasks, n=1)
        raise UserError(
            f"{where}: no task {planned.harness_task!r}{f', did you mean {near[0]!r}?' if near else ''} "
            f"(there are {', '.join(manager.all_subtasks)})"
        )
    task = manager.load(planned.harness_task)["tasks"][planned.harness_task]
    task.set_config("task", planned.name)
    task.set_config("num_fewshot", planned.spec.num_fewshot)
    task.set_fewshot_seed(FEWSHOT_SEED)
    directions: dict[str, bool] = dict(task.higher_is_better() or {})
    metric, direction = planned.spec.metric, planned.spec.direction
    if metric not in directions:
        raise UserError(
            f"{where}: {planned.harness_task} has no metric {metric!r} but {', '.join(directions)}"
        )
    if directions[metric] != (direction == "higher"):
        raise UserError(f"{where}: direction {direction!r} is the wrong way round for {metric}")
    return task


def task_settings(planned: PlannedTask, task: Task) -> dict[str, Any]:
    """All of a task that decides its numbers, for its result."""
    files = sorted(
        path for path in asset("eval/tasks").rglob("*") if path.is_file() and path.suffix != ".pyc"
    )
    return {
        "harness_task": planned.harness_task,
        "metadata": dict(planned.metadata),
        "num_fewshot": planned.spec.num_fewshot,
        "documents_sha256": hashlib.sha256(
            json.dumps(list(task.eval_docs), ensure_ascii=False).encode()
        ).hexdigest(),
        "tasks_sha256": hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest(),
    }
