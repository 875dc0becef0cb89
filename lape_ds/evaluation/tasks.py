"""The harness's tasks in a suite's settings.

In the evaluation room, between the suites and the harness that runs them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from inspect import getsource, isfunction
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks._factory import TaskFactory
from lm_eval.tasks._index import Entry

from lape_ds.corpora.hub import explained
from lape_ds.errors import UserError
from lape_ds.evaluation.data_sources import local_arguments, local_path
from lape_ds.evaluation.harness_tasks import find_task
from lape_ds.evaluation.hub_access import ask_hub
from lape_ds.evaluation.pooled import PooledTask
from lape_ds.evaluation.suites import PlannedTask
from lape_ds.evaluation.translation_metrics import require_spbleu, spbleu

FEWSHOT_SEED = 1234  # of `lm_eval`, whose prompts ours equal
# Data sets that no longer load, and what to measure instead.
_DEAD = {"facebook/flores": "flores_from_english and flores_to_english, which read its successor FLORES+"}


def build_task(planned: PlannedTask, *, datasets: Mapping[str, str] | None = None) -> Task:
    """The harness's task with its documents, in the suite's settings.

    Args:
        planned: Names a task, or a group or tag, whose documents are pooled.
        datasets: Id of a data set on the hub -> local folder or file that is read in its place.

    Raises:
        UserError: The harness knows no such task; the suite's metric, direction, filter or number of examples is not the task's;
            it is a group whose tasks cannot be pooled; or its data, or spBLEU's tokenizer, are neither here nor to be had.
    """
    where = f"suite task {planned.title!r}"
    entry, index = find_task(planned.harness_task, where=where)
    factory = _Factory(where, metadata=dict(planned.metadata), datasets=datasets or {})
    built = factory.build(entry, overrides=None, registry=dict(index))
    members = (
        built.get_all_tasks() if isinstance(built, Group) else built if isinstance(built, list) else [built]
    )
    for member in members:
        _settle(member, planned, where)
    task = members[0] if isinstance(built, Task) else PooledTask(planned.name, members, where=where)
    task.set_config("task", planned.name)
    if isinstance(built, Group):
        _check_weights(built, planned, where)
    _check_metric(task, planned, where)
    return task


def begin_drawing(task: Task) -> None:
    """Puts a task's examples at their beginning: the harness draws anew for each document, and goes on where it has left off."""
    task.set_fewshot_seed(FEWSHOT_SEED)


def task_settings(planned: PlannedTask, task: Task) -> dict[str, Any]:
    """All of a task that decides its numbers, for its result."""
    members = list(task.members.values()) if isinstance(task, PooledTask) else [task]
    return {
        "harness_task": planned.harness_task,
        "metadata": dict(planned.metadata),
        "num_fewshot": task.get_config("num_fewshot"),
        "filter": task._filters[0].name,
        "documents_sha256": _hash(task.eval_docs),
        # What examples are drawn from, and templates, generation and metrics.
        "fewshot_sha256": _hash(
            row for member in members if hasattr(member, "sampler") for row in _sampler(member).df
        ),
        "task_sha256": _hash(map(_settings, members)),
    }


class _Factory(TaskFactory):
    """The harness's, but that local copies can stand in for data sets, and that what fails is told in one line."""

    def __init__(self, where: str, *, metadata: dict[str, Any], datasets: Mapping[str, str]) -> None:
        super().__init__(meta=metadata)
        self._where, self._datasets = where, datasets

    def _load_full_config(self, entry: Entry, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        config = super()._load_full_config(entry, overrides)
        config["metadata"] = dict(config["metadata"])
        # Ours have the id among their parameters, for their document functions read the data.
        own: str = config["metadata"].get("dataset", "")
        if own in self._datasets:
            config["metadata"]["dataset"] = str(local_path(self._datasets[own], where=self._where))
        dataset: str = config.get("dataset_path") or ""
        if dataset in self._datasets:
            splits = [
                config[key]
                for key in ("training_split", "validation_split", "test_split", "fewshot_split")
                if config.get(key)
            ]
            arguments = local_arguments(
                self._datasets[dataset], config.get("dataset_name"), splits, where=self._where
            )
            config |= {"dataset_path": arguments.pop("path"), "dataset_name": arguments.pop("name", None)}
            config["dataset_kwargs"] = (config.get("dataset_kwargs") or {}) | arguments
        elif dataset in _DEAD:
            raise UserError(f"{self._where}: data set {dataset} no longer loads; name {_DEAD[dataset]}")
        elif dataset:
            ask_hub()
        return config

    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Task:
        config = entry.cfg or {}
        data = " ".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key))
        with explained(data or entry.name, key=self._where):
            return super()._build_task(entry, overrides)


def _settle(task: Task, planned: PlannedTask, where: str) -> None:
    """Gives a task the suite's number of examples, and one way to read answers."""
    wanted = planned.spec.num_fewshot
    num_fewshot = wanted if wanted is not None else task.get_config("num_fewshot") or 0
    task.set_config("num_fewshot", num_fewshot)
    begin_drawing(task)
    if hasattr(task, "sampler"):
        _check_examples(task, num_fewshot, where)
    names = [one.name for one in task._filters]
    chosen = planned.spec.filter or names[0]
    if chosen not in names:
        raise UserError(
            f"{where}: {task.task_name} has no filter {chosen!r} but {', '.join(map(str, names))}"
        )
    task._filters = [task._filters[names.index(chosen)]]


def _check_examples(task: Task, num_fewshot: int, where: str) -> None:
    there = len(_sampler(task).df)
    if num_fewshot > there:
        raise UserError(f"{where}: num_fewshot {num_fewshot}, but {task.task_name} has {there} examples")


def _check_metric(task: Task, planned: PlannedTask, where: str) -> None:
    directions: dict[str, bool] = dict(task.higher_is_better() or {})
    metric, direction = planned.spec.metric, planned.spec.direction
    if metric not in directions:
        raise UserError(
            f"{where}: {planned.harness_task} has no metric {metric!r} but {', '.join(directions)}"
        )
    if directions[metric] != (direction == "higher"):
        raise UserError(f"{where}: direction {direction!r} is the wrong way round for {metric}")
    if spbleu.__name__ in directions:
        require_spbleu()


def _check_weights(group: Group, planned: PlannedTask, where: str) -> None:
    """Refuses a group that weighs each task alike, unless all have as many documents, which comes to the same."""
    sizes = [len(member.eval_docs) for member in group.get_all_tasks()]
    for one in group.aggregate_metric_list or []:
        if one.metric == planned.spec.metric and not one.weight_by_size and len(set(sizes)) > 1:
            raise UserError(
                f"{where}: {group.name} weighs each of its {len(sizes)} tasks alike (`weight_by_size: false`), whereas here each "
                f"document weighs alike, and they have {min(sizes)} to {max(sizes)}; name its parts one by one"
            )


def _sampler(task: Task) -> Any:
    return task.sampler  # pyright: ignore[reportAttributeAccessIssue]


def _settings(task: Task) -> dict[str, Any]:
    """What a task's YAML says, but where its data lies: what they are is told by the documents' hash."""
    config = task.config.to_dict(keep_callable=True)
    return {
        key: value
        for key, value in config.items()
        if key not in ("metadata", "dataset_path", "dataset_kwargs", "task")
    }


def _hash(rows: Iterable[Any]) -> str:
    """SHA-256 of rows as JSON, the same in every process."""
    content = hashlib.sha256()
    for row in rows:
        content.update(json.dumps(row, ensure_ascii=False, default=_plain).encode())
    return content.hexdigest()


def _plain(value: Any) -> Any:
    """What JSON has no form for: a function is where it lies and its text, and nothing is told by its address in memory."""
    if isinstance(value, partial):
        return {"function": value.func, "args": value.args, "keywords": value.keywords}
    if isfunction(value):
        # A module beside a task's YAML may have its whole path as its name, which is another on each machine.
        module = re.split(r"[./]", value.__module__)[-1]
        return {"module": module, "name": value.__qualname__, "text": _text(value)}
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


def _text(function: Callable[..., Any]) -> str | None:
    """A function's source; None where there is none."""
    try:
        return getsource(function)
    except OSError:
        return None
