"""From the samples of each task to what resampling needs: one task after another, or several processes side by side.

Between reading and the engine. n-grams are counted in Python, for minutes over hundreds of translations.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from lape_ds.evaluation.comparing.alike import check_samples
from lape_ds.evaluation.comparing.differences import MIN_DOCUMENTS, Estimate, Paired
from lape_ds.evaluation.comparing.measures import NoMeasure, measured
from lape_ds.evaluation.comparing.reading import Samples, read_samples
from lape_ds.evaluation.results import TaskResult
from lape_ds.runlog import Progress

_TASKS_PER_WORKER = 16  # fewer are read before another process has started

Pairing = Paired | list[Estimate]
ByModel = Mapping[str, TaskResult]


def paired_tasks(
    folders: Mapping[str, Path], results: Mapping[str, Mapping[str, TaskResult]]
) -> dict[str, Pairing]:
    """Every task as the engine takes it; where it cannot be resampled, an estimate without p for each model.

    Args:
        folders: Label -> folder of results.
        results: Label -> task -> result, the base's first; every model has the same tasks.

    Raises:
        UserError: Samples are missing, damaged or not measured alike.
    """
    tasks = list(next(iter(results.values())))
    by_task = [{label: model[task] for label, model in results.items()} for task in tasks]
    found: dict[str, Pairing] = {}
    with Progress("reading", total=len(tasks), unit="tasks") as bar, _paired_each(folders, by_task) as each:
        for task, one in zip(tasks, each, strict=True):
            found[task] = one
            bar.advance()
    return found


@contextmanager
def _paired_each(folders: Mapping[str, Path], by_task: Sequence[ByModel]) -> Iterator[Iterator[Pairing]]:
    """Each task, in order."""
    pair = partial(_pair, folders)
    num_workers = min(len(os.sched_getaffinity(0)), len(by_task) // _TASKS_PER_WORKER)
    if num_workers < 2:
        yield map(pair, by_task)
        return
    with ProcessPoolExecutor(
        num_workers, mp_context=get_context("spawn"), initializer=_leave_interrupts_to_the_parent
    ) as pool:
        try:
            yield pool.map(pair, by_task)
        finally:  # at an error, nothing more is begun
            pool.shutdown(cancel_futures=True)


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _pair(folders: Mapping[str, Path], results: ByModel) -> Pairing:
    task = next(iter(results.values())).task
    samples = {label: read_samples(folders[label], result) for label, result in results.items()}
    check_samples(task, samples)
    try:
        return _paired(results, samples)
    except NoMeasure as error:
        base, *scores = [result.scores[result.metric].value for result in results.values()]
        return [Estimate(base, score, score - base, reason=str(error)) for score in scores]


def _paired(results: ByModel, samples: Mapping[str, Samples]) -> Paired:
    """What resampling needs of one task.

    Raises:
        NoMeasure: There are too few documents, or the score is no function of sums over them.
    """
    metric = next(iter(results.values())).metric
    found = {label: measured(metric, one.values) for label, one in samples.items()}
    for label, (measure, contributions) in found.items():
        value = float(measure.value(contributions.sum(axis=0)))
        stored = results[label].scores[results[label].metric].value
        if not abs(value - stored) <= 1e-6 * max(1.0, abs(stored)):  # also where it is no number
            raise NoMeasure("not the mean of its documents")
    measures, contributions = zip(*found.values(), strict=True)
    base, *models = contributions
    if len(base) < MIN_DOCUMENTS:
        raise NoMeasure(f"fewer than {MIN_DOCUMENTS} documents")
    if measures[0].is_ratio and any((model[:, 1] != base[:, 1]).any() for model in models):
        raise NoMeasure("its documents are of other lengths for other models")
    measure = replace(measures[0], is_accuracy=all(one.is_accuracy for one in measures))
    return Paired(measure, base, np.stack(models))
