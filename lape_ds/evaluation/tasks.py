"""The harness's tasks in a suite's settings.

In the evaluation room, between the suites and the harness that runs them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from lape_ds.corpora.hub import explained
from lape_ds.errors import UserError
from lape_ds.evaluation.suites import PlannedTask
from lape_ds.resources import asset

FEWSHOT_SEED = 1234
_TASK_LINE = re.compile(rb"""^["']?task["']?\s*:\s*["']?([^\s"'#]+)["']?\s*(?:#.*)?$""", re.MULTILINE)


def build_task(planned: PlannedTask) -> Task:
    """The harness's task with its documents, in the suite's settings.

    Raises:
        UserError: The harness knows no such task, or the suite's metric or direction is not the task's.
    """
    # Only our own tasks, or the one folder of the harness's own, are indexed: all of them take seconds. The metadata is what
    # the task's document function is called with, and how it learns its language.
    metadata: dict[str, Any] = dict(planned.metadata)
    folder = _built_in_folders().get(planned.harness_task, asset("eval/tasks"))
    manager = TaskManager(include_path=str(folder), include_defaults=False, metadata=metadata)
    where = f"suite task {planned.title!r}"
    if planned.harness_task not in manager.all_subtasks:
        known = [*manager.all_subtasks, *_built_in_folders()]
        near = difflib.get_close_matches(planned.harness_task, known, n=1)
        raise UserError(
            f"{where}: no task {planned.harness_task!r}{f', did you mean {near[0]!r}?' if near else ''} "
            f"(there are {', '.join(manager.all_subtasks)} and those of the harness)"
        )
    entry: Any = manager.task_index[planned.harness_task]
    data = " ".join(str(entry.cfg[key]) for key in ("dataset_path", "dataset_name") if entry.cfg.get(key))
    with explained(data, key=where):
        task = manager.load(planned.harness_task)["tasks"][planned.harness_task]
    task.set_config("task", planned.name)
    task.set_config("num_fewshot", planned.spec.num_fewshot)
    directions: dict[str, bool] = dict(task.higher_is_better() or {})
    metric, direction = planned.spec.metric, planned.spec.direction
    if metric not in directions:
        raise UserError(
            f"{where}: {planned.harness_task} has no metric {metric!r} but {', '.join(directions)}"
        )
    if directions[metric] != (direction == "higher"):
        raise UserError(f"{where}: direction {direction!r} is the wrong way round for {metric}")
    return task


@lru_cache
def _built_in_folders() -> dict[str, Path]:
    """Name of each of the harness's own tasks -> the folder of its YAML file.

    Read by its line alone: the harness's index of all its files takes seconds.
    """
    root = Path(lm_eval.tasks.__file__).parent
    found: dict[str, Path] = {}
    for path in sorted(root.glob("**/*.yaml")):
        if name := _TASK_LINE.search(path.read_bytes()):
            found.setdefault(name[1].decode(), path.parent)
    return found


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
