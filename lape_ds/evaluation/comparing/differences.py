"""Differences of several models from one, over many tasks at once, with what resampling says of them.

The engine of the comparison: arrays in, estimates out; `comparison.py` knows what the tasks are. Tasks with the same
number of documents are resampled by the same matrix, and so are all models: a difference is always taken within a
resample, and where the same documents are asked in several languages a mean over them keeps their correlation.
Shapes: n documents, k numbers of each, M models beside the base.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lape_ds.evaluation.comparing.measures import Measure
from lape_ds.evaluation.comparing.statistics import (
    LEVEL,
    Array,
    half_width_factors,
    mcnemar,
    p_values,
    resamplings,
    studentised,
)

MIN_DOCUMENTS = 10  # fewer have a value and no p
MIN_DIFFERING = 6  # so many must differ before any division of them is rarer than one in twenty
_FEW = f"fewer than {MIN_DIFFERING} documents scored otherwise"
_NONE = "no document scored otherwise"  # resampling would give ±0, which reads as certainty


@dataclass(frozen=True)
class Paired:
    """One task, measured for the base and for M models on the same documents.

    Attributes:
        measure: How sums become scores.
        base: `[n, k]`.
        models: `[M, n, k]`.
    """

    measure: Measure
    base: Array
    models: Array


@dataclass(frozen=True)
class Estimate:
    """A difference and how sure it is.

    Attributes:
        base: The base's score.
        value: The model's.
        difference: value − base.
        half_width: Half of the 95 % interval, which is symmetric around the difference; None: not known.
        p: Two-sided; None where there are too few documents.
        gained: Documents that only the model has right, where documents are right or wrong.
        lost: Documents that only the base has right.
        reason: Why there is no interval.
    """

    base: float
    value: float
    difference: float
    half_width: float | None = None
    p: float | None = None
    gained: int | None = None
    lost: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Observed:
    """A task as it was measured.

    Attributes:
        scores: The base's, then the models', `[1 + M]`.
        influences: What each document moves the differences by, mean 0, `[n, M]`.
        variances: Of the differences, `[M]`.
    """

    scores: Array
    influences: Array
    variances: Array

    @property
    def differences(self) -> Array:
        """`[M]`."""
        return self.scores[1:] - self.scores[0]


def estimate(
    tasks: Mapping[str, Paired],
    means: Mapping[str, Mapping[str, float]],
    *,
    num_resamples: int,
    seed: int,
    advance: Callable[[float], object] | None = None,
) -> tuple[dict[str, list[Estimate]], dict[str, list[Estimate]]]:
    """Estimates of every task and of weighted sums of tasks, for each model.

    Args:
        tasks: By name; every task has the same models. At least `MIN_DOCUMENTS` documents each.
        means: By name, the weight of each task in it; scores of the base and of models are weighted alike.
        num_resamples: How many.
        seed: Of the resampling.
        advance: Told of resamples of a task when they are done.

    Returns:
        Of `tasks` and of `means`: name -> an estimate for each model.
    """
    observed = {name: _observe(task) for name, task in tasks.items()}
    pooled = {
        name: _Pool(weights, tasks, observed, num_resamples=num_resamples) for name, weights in means.items()
    }
    found: dict[str, list[Estimate]] = {}
    by_size = sorted(tasks, key=lambda name: len(tasks[name].base))
    for size, names in itertools.groupby(by_size, key=lambda name: len(tasks[name].base)):
        group = list(names)
        t = {name: np.empty((num_resamples, len(tasks[name].models))) for name in group}
        start = 0
        for counts in resamplings(size, num_resamples=num_resamples, seed=seed):
            rows = slice(start, start + len(counts))
            for name in group:
                distances, variances = _resampled(tasks[name], observed[name], counts)
                t[name][rows] = studentised(distances, variances, size * observed[name].variances)
                for pool in pooled.values():
                    pool.add_distances(name, rows, distances)
                if advance is not None:
                    advance(len(counts))
            for pool in pooled.values():
                pool.add_variances(size, rows, counts)
            start += len(counts)
        found |= {name: _estimates(tasks[name], observed[name], t.pop(name)) for name in group}
    return {name: found[name] for name in tasks}, {name: pool.estimates() for name, pool in pooled.items()}


def _observe(task: Paired) -> _Observed:
    """Scores and, by leaving out one document at a time, the influence of each (the jackknife's)."""
    stacked = np.concatenate([task.base[None], task.models])  # [1 + M, n, k]
    size = len(task.base)
    totals = stacked.sum(axis=1)
    scores = task.measure.value(totals)
    moved = (size - 1) * (scores[:, None] - task.measure.value(totals[:, None] - stacked))
    moved -= moved.mean(axis=1, keepdims=True)
    influences = (moved[1:] - moved[0]).T
    if task.measure.is_ratio:
        variances = _resampled_ratio(task, scores[1:] - scores[0], np.ones((1, size)))[1][0]
    else:
        variances = (influences**2).sum(axis=0) / (size * (size - 1))
    return _Observed(scores, influences, variances)


def _resampled(task: Paired, observed: _Observed, counts: Array) -> tuple[Array, Array]:
    """Distances of the resampled differences from the differences, and their own variances, `[resamples, M]` each."""
    if task.measure.is_ratio:
        return _resampled_ratio(task, observed.differences, counts)
    num_models, size, numbers = task.models.shape
    columns = task.models.transpose(1, 0, 2).reshape(size, num_models * numbers)
    models = task.measure.value((counts @ columns).reshape(len(counts), num_models, numbers))
    differences = models - task.measure.value(counts @ task.base)[:, None]
    return differences - observed.differences, _variances(counts, observed.influences)


def _resampled_ratio(task: Paired, differences: Array, counts: Array) -> tuple[Array, Array]:
    """The same for a ratio, whose variance is known in every resample; influences in the data only come near it.

    Source: Cochran, Sampling Techniques, 3rd ed., 1977, section 2.11 (ratio estimate).
    """
    size, lengths = len(task.base), task.base[:, 1]
    residuals = (task.models[:, :, 0] - task.base[:, 0]).T - differences * lengths[:, None]  # [n, M]
    whole = (counts @ lengths)[:, None]
    distances = counts @ residuals / whole
    squares = (
        counts @ residuals**2
        - 2 * distances * (counts @ (residuals * lengths[:, None]))
        + distances**2 * (counts @ lengths**2)[:, None]
    )
    return distances, np.maximum(squares, 0.0) / whole**2 * size / (size - 1)


def _variances(counts: Array, influences: Array) -> Array:
    """Variance of the mean influence within each resample, `[resamples, M]`."""
    size = counts.shape[1]
    first, second = counts @ influences / size, counts @ influences**2 / size
    return np.maximum(second - first**2, 0.0) / (size - 1)


def _estimates(task: Paired, observed: _Observed, t: Array) -> list[Estimate]:
    found = _intervals(observed.scores, observed.variances, t)
    return [
        _right_or_wrong(one, task.base[:, 0], model[:, 0])
        if task.measure.is_accuracy
        else _with_enough(one, int((model != task.base).any(axis=1).sum()))
        for one, model in zip(found, task.models, strict=True)
    ]


def _intervals(scores: Array, variances: Array, t: Array) -> list[Estimate]:
    """Estimates by resampling alone."""
    errors, differences = np.sqrt(variances), scores[1:] - scores[0]
    constant = errors <= 1e-12 * np.maximum(1.0, np.abs(scores[1:]))  # all documents moved alike
    observed = np.where(constant, np.inf, np.abs(differences) / np.where(constant, 1.0, errors))
    p = np.where(constant, (differences == 0) * 1.0, p_values(t, observed))
    same = constant & (differences == 0)
    half_widths = np.where(constant, 0.0, errors * half_width_factors(np.where(constant, 0.0, t)))
    return [
        Estimate(
            base=float(scores[0]),
            value=float(scores[place + 1]),
            difference=float(differences[place]),
            half_width=None
            if same[place] or not np.isfinite(half_widths[place])
            else float(half_widths[place]),
            p=float(p[place]),
            reason=_NONE if same[place] else "",
        )
        for place in range(len(differences))
    ]


def _with_enough(found: Estimate, num_differing: int) -> Estimate:
    """No p below that of a sign test in which all documents agree; none at all where few differ."""
    assert found.p is not None
    if 0 < num_differing < MIN_DIFFERING:
        return replace(found, half_width=None, p=None, reason=_FEW)
    return replace(found, p=max(found.p, 2.0 ** (1 - num_differing)) if num_differing else 1.0)


def _right_or_wrong(found: Estimate, base: Array, model: Array) -> Estimate:
    """With the exact test's p, and an interval that keeps zero exactly where that test does."""
    gained, lost = int((model > base).sum()), int((model < base).sum())
    p, half_width, distance = mcnemar(gained, lost), found.half_width, abs(found.difference)
    if half_width is not None:
        # Of few discordant documents the bootstrap knows less than the test: it may not see that none went the other way.
        half_width = max(half_width, distance) if p > LEVEL else min(half_width, math.nextafter(distance, 0))
    reason = "" if half_width is not None else _FEW if gained + lost else _NONE
    return replace(found, p=p, half_width=half_width, gained=gained, lost=lost, reason=reason)


class _Pool:
    """A weighted sum of tasks while it is resampled."""

    def __init__(
        self,
        weights: Mapping[str, float],
        tasks: Mapping[str, Paired],
        observed: Mapping[str, _Observed],
        *,
        num_resamples: int,
    ) -> None:
        self._weights = weights
        self._scores: Array = np.sum(
            [weight * observed[name].scores for name, weight in weights.items()], axis=0
        )
        # Tasks of one size are resampled together, so their influences add up document by document.
        self._influences: dict[int, Array] = {}
        for name, weight in weights.items():
            size, moved = len(tasks[name].base), weight * observed[name].influences
            self._influences[size] = self._influences.get(size, 0.0) + moved
        shape = (num_resamples, len(self._scores) - 1)
        self._distances, self._variances = np.zeros(shape), np.zeros(shape)

    def add_distances(self, name: str, rows: slice, distances: Array) -> None:
        """Those of a task in some resamples."""
        if name in self._weights:
            self._distances[rows] += self._weights[name] * distances

    def add_variances(self, size: int, rows: slice, counts: Array) -> None:
        """Those of all tasks of one size in some resamples."""
        if size in self._influences:
            self._variances[rows] += _variances(counts, self._influences[size])

    def estimates(self) -> list[Estimate]:
        """For each model."""
        squares = {size: (moved**2).mean(axis=0) for size, moved in self._influences.items()}
        variances: Array = np.sum([square / (size - 1) for size, square in squares.items()], axis=0)
        t = studentised(self._distances, self._variances, np.sum(list(squares.values()), axis=0))
        return _intervals(self._scores, variances, t)
