"""Which tasks there are: ours under `eval/tasks/`, and those built into the harness.

In the evaluation room, between the suites and `tasks.py`. Indexing the harness's 14,000 takes seconds and is done once in a
process, if a group or tag of the harness is asked for; for a single task its folder is enough.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal

import lm_eval.tasks
from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, is_higher_better
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Entry, Kind

from lape_ds.errors import UserError
from lape_ds.resources import asset

Index = dict[str, Entry]
_TASK_LINE = re.compile(rb"""^["']?task["']?\s*:\s*["']?([^\s"'#]+)["']?\s*(?:#.*)?$""", re.MULTILINE)


@cache
def own_tasks() -> Index:
    """Ours, in milliseconds."""
    return _index(include_defaults=False)


@cache
def all_tasks() -> Index:
    """Ours and the harness's, in seconds."""
    return _index(include_defaults=True)


def find_task(name: str, *, where: str) -> tuple[Entry, Index]:
    """A task, group or tag, and the index that holds all that it consists of.

    Args:
        name: The harness's.
        where: What an error begins with.

    Raises:
        UserError: There is none of this name.
    """
    for index in (own_tasks, lambda: _beside(name), all_tasks):
        if name in index():
            return index()[name], index()
    near = difflib.get_close_matches(name, [*own_tasks(), *all_tasks()], n=1)
    raise UserError(
        f"{where}: no task {name!r}{f', did you mean {near[0]!r}?' if near else ''} "
        f"(there are {', '.join(own_tasks())}, and lm-eval's: `lm-eval ls tasks`)"
    )


def default_metric(name: str, metric: str | None, *, where: str) -> tuple[str, Literal["higher", "lower"]]:
    """What a suite that does not say it reads: the metric that a task names first, and which way it is better.

    Args:
        name: Of a task, group or tag.
        metric: One of its metrics; None: the first.
        where: What an error begins with.

    Raises:
        UserError: No such task, or it has no such metric.
    """
    entry, index = find_task(name, where=where)
    directions = metric_directions(entry, index)
    if directions is None:
        raise UserError(f"{where}: say metric and direction: {name} is of a form that does not tell them")
    metric = metric or next(iter(directions))
    if metric not in directions:
        raise UserError(f"{where}: {name} has no metric {metric!r} but {', '.join(directions)}")
    return metric, "higher" if directions[metric] else "lower"


def metric_directions(entry: Entry, index: Index) -> dict[str, bool] | None:
    """The metrics of a task, or of the first of a group or tag, as its YAML tells them.

    Args:
        entry: The task, group or tag.
        index: Holds all that it consists of.

    Returns:
        Metric -> whether higher is better; None where they are told by Python code alone.
    """
    config = next(_leaves(entry, index), None)
    if config is None or "class" in config:
        return None
    listed: list[dict[str, Any]] = config.get("metric_list") or [
        {"metric": one} for one in DEFAULT_METRIC_REGISTRY[config.get("output_type", "generate_until")]
    ]
    # A function is named by the path of its module, and its metric by itself.
    names = [re.split(r"[./]", str(one["metric"]))[-1] for one in listed]
    return {
        name: bool(one["higher_is_better"] if "higher_is_better" in one else is_higher_better(name))
        for name, one in zip(names, listed, strict=True)
    }


def is_single(name: str) -> bool:
    """Whether a name is that of a single task, ours or the harness's; of no group or tag. Takes a second, once in a process."""
    return name in own_tasks() or name in _folders()


def _leaves(entry: Entry, index: Index) -> Iterator[dict[str, Any]]:
    """The settings of the tasks in a group or tag, as far as their YAML tells; of a task, its own."""
    if entry.kind is Kind.TASK:
        yield entry.cfg or {}
        return
    members = sorted(entry.tags) if entry.kind is Kind.TAG else (entry.cfg or {}).get("task") or []
    yield from _leaves_of(members, index)


def _leaves_of(members: Any, index: Index) -> Iterator[dict[str, Any]]:
    """Of what a group lists: names, or tasks and groups that are written out in it."""
    for member in [members] if isinstance(members, str) else members:
        named = member if isinstance(member, str) else member.get("task") or member.get("group")
        if isinstance(named, list):
            yield from _leaves_of(named, index)
        elif named in index:
            yield from _leaves(index[named], index)


def _beside(name: str) -> Index:
    """The folder of one of the harness's tasks; nothing if it is no single task."""
    folder = _folders().get(name)
    return {} if folder is None else _folder_index(folder)


@cache
def _folders() -> dict[str, Path]:
    """Name of each single task of the harness -> the folder of its file, by its line `task: name` alone."""
    found: dict[str, Path] = {}
    for path in sorted(Path(lm_eval.tasks.__file__).parent.glob("**/*.yaml")):
        if line := _TASK_LINE.search(path.read_bytes()):
            found.setdefault(line[1].decode(), path.parent)
    return found


@cache
def _folder_index(folder: Path) -> Index:
    return TaskManager(include_path=str(folder), include_defaults=False).task_index


def _index(*, include_defaults: bool) -> Index:
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of tasks that it has under one name twice
    try:
        return TaskManager(
            include_path=str(asset("eval/tasks")), include_defaults=include_defaults
        ).task_index
    finally:
        logger.setLevel(level)
