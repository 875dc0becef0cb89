"""Grids of what a suite measured of the tuned runs, document by document: one for each of its tasks.

Between the results of `lape-ds eval` and the table. Differences are paired and resampled by the comparison's own engine; the
mean over languages is resampled as one sum, so its interval is about other documents in these languages. Several seeds of a
method count as their mean, document by document, where the score is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lape_ds.errors import UserError
from lape_ds.evaluation.comparing.alike import check_results
from lape_ds.evaluation.comparing.comparison import NUM_RESAMPLES, SEED
from lape_ds.evaluation.comparing.differences import Estimate, Paired, estimate
from lape_ds.evaluation.comparing.measures import Measure
from lape_ds.evaluation.comparing.pairing import paired_tasks
from lape_ds.evaluation.comparing.reading import read_results
from lape_ds.evaluation.comparing.records import unit_of
from lape_ds.evaluation.comparing.statistics import Array
from lape_ds.evaluation.results import TaskResult
from lape_ds.matrix.grids import Better, Grid, Row, Value, judged
from lape_ds.matrix.measuring import BASE, results_folder
from lape_ds.matrix.states import read_tuned
from lape_ds.recipe import MatrixLanguage, MatrixModel

INTERVAL = "95 % interval over documents (paired studentised bootstrap)"
_SEEDS = "several seeds of a score that is no mean of its documents"

Key = tuple[str, str]  # language, task


@dataclass(frozen=True)
class _Measured:
    """One task of one language, of the base and of every variant.

    Attributes:
        result: The base's.
        measure: How sums become scores; None where documents cannot be resampled.
        documents: Variant (and the base) -> `[n, k]`; of several seeds the mean. Empty without a measure.
        scores: Variant (and the base) -> score, of several seeds the mean.
        seeds: Variant -> how many.
        reason: Why there is no measure.
    """

    result: TaskResult
    measure: Measure | None
    documents: dict[str, Array]
    scores: dict[str, float]
    seeds: dict[str, int]
    reason: str


def suite_grids(model: MatrixModel) -> list[Grid]:
    """For each of the suites' tasks, its gain in the target and its loss in other languages.

    Raises:
        UserError: Results or samples are damaged, or were not measured alike.
    """
    measured = {language.code: _read(language) for language in model.languages}
    measured = {code: tasks for code, tasks in measured.items() if tasks}
    variants, codes = model.languages[0].variants, [language.code for language in model.languages]
    titles = dict.fromkeys(one.result.title for tasks in measured.values() for one in tasks.values())
    return [grid for title in titles for grid in _of_title(title, measured, codes, variants)]


def _read(language: MatrixLanguage) -> dict[str, _Measured]:
    """Task -> what was measured of the base and of the tuned runs that have results of it."""
    folder = results_folder(language)
    known = [run for run in read_tuned(language) if run.variant in language.variants]
    runs = [run for run in known if (folder / run.label / "samples").is_dir()]
    if not runs:
        return {}
    folders = {label: folder / label for label in (BASE, *(run.label for run in runs))}
    results = {label: read_results(path) for label, path in folders.items()}
    for run in runs:  # one that waits for being measured again beside a base that was
        if not _alike(results[BASE], results[run.label]):
            del results[run.label]
    runs = [run for run in runs if run.label in results]
    measured: dict[str, _Measured] = {}
    for labels, tasks in _by_models(results).items():
        own = {label: {task: results[label][task] for task in tasks} for label in (BASE, *labels)}
        check_results(own)
        paired = paired_tasks({label: folders[label] for label in own}, own)
        by_variant: dict[str, list[int]] = {}
        for number, run in enumerate(run for run in runs if run.label in labels):
            by_variant.setdefault(run.variant, []).append(number)
        measured |= {task: _measured(task, paired[task], own, by_variant) for task in tasks}
    return {task: measured[task] for task in results[BASE] if task in measured}


def _alike(base: Mapping[str, TaskResult], model: Mapping[str, TaskResult]) -> bool:
    """Whether a model was measured as the base was, as far as both have a task."""
    both = base.keys() & model.keys()
    try:
        check_results(
            {label: {task: own[task] for task in both} for label, own in ((BASE, base), ("model", model))}
        )
    except UserError:
        return False
    return True


def _by_models(results: Mapping[str, Mapping[str, TaskResult]]) -> dict[tuple[str, ...], list[str]]:
    """Which tasks some of the models have beside the base: one that failed for a model is compared among the others."""
    found: dict[tuple[str, ...], list[str]] = {}
    for task in results[BASE]:
        labels = tuple(label for label, own in results.items() if label != BASE and task in own)
        if labels:
            found.setdefault(labels, []).append(task)
    return found


def _measured(
    task: str,
    found: Paired | list[Estimate],
    results: Mapping[str, Mapping[str, TaskResult]],
    by_variant: Mapping[str, Sequence[int]],
) -> _Measured:
    base, *models = [model[task] for model in results.values()]
    values = [one.scores[one.metric].value for one in models]
    scores = {BASE: base.scores[base.metric].value}
    scores |= {
        variant: float(np.mean([values[number] for number in own])) for variant, own in by_variant.items()
    }
    seeds = {variant: len(own) for variant, own in by_variant.items()}
    if not isinstance(found, Paired):
        return _Measured(base, None, {}, scores, seeds, found[0].reason)
    documents = {BASE: found.base}
    for variant, own in by_variant.items():
        if len(own) == 1 or found.measure.is_ratio:
            documents[variant] = found.models[list(own)].mean(axis=0)
    return _Measured(base, found.measure, documents, scores, seeds, _SEEDS)


def _of_title(
    title: str, measured: Mapping[str, Mapping[str, _Measured]], codes: Sequence[str], variants: Sequence[str]
) -> Iterator[Grid]:
    keys: dict[str, dict[str, list[Key]]] = {"gain": {}, "forgetting": {}}
    for code, tasks in measured.items():
        for task, one in tasks.items():
            if one.result.title == title:
                what = "gain" if one.result.language == code else "forgetting"
                keys[what].setdefault(code, []).append((code, task))
    for what, by_language in keys.items():
        if by_language:
            yield _grid(title, what, by_language, measured, codes, variants)


def _grid(
    title: str,
    what: str,
    keys: Mapping[str, Sequence[Key]],
    measured: Mapping[str, Mapping[str, _Measured]],
    codes: Sequence[str],
    variants: Sequence[str],
) -> Grid:
    first = next(measured[code][task] for own in keys.values() for code, task in own).result
    better: Better = "higher" if what == "gain" else "lower"
    # Gains are positive where the score gets better, losses where it gets worse.
    sign = 1.0 if (first.direction == "higher") == (what == "gain") else -1.0
    there = [
        variant
        for variant in variants
        if any(variant in one.scores for own in measured.values() for one in own.values())
    ]
    assert there  # a task is known by some variant's results
    reference, others = there[0], there[1:]
    words = "Gain on the target" if what == "gain" else "Mean loss of the other measured languages"
    suites = ", ".join(first.suites)
    task = title if title == first.metric else f"{title} ({first.metric})"
    return Grid(
        id=f"suite-{title}-{what}",
        title=f"{words}, {task}, each method at its tuned rate, against the base",
        label=task,
        at="tuned",
        level=None,
        what="gain" if what == "gain" else "forgetting",
        measured=f"suite {suites}" if suites else "suite",
        unit=unit_of(first.metric, first.random_baseline),
        better=better,
        interval=INTERVAL,
        rows=judged([_row(variant, BASE, keys, measured, codes, sign) for variant in there], better),
        reference=reference if others else None,
        against=judged([_row(variant, reference, keys, measured, codes, sign) for variant in others], better),
    )


def _row(
    variant: str,
    base: str,
    keys: Mapping[str, Sequence[Key]],
    measured: Mapping[str, Mapping[str, _Measured]],
    codes: Sequence[str],
    sign: float,
) -> Row:
    """A variant less the base, or less another variant."""
    known = {
        code: own
        for code, own in keys.items()
        if all({variant, base} <= measured[code][task].scores.keys() for code, task in own)
    }
    whole = known.keys() == set(codes)
    weights = {code: {_name(key): 1 / len(own) for key in own} for code, own in known.items()}
    means = dict(weights)
    if whole:
        means["mean"] = {
            name: weight / len(weights) for own in weights.values() for name, weight in own.items()
        }
    found = _estimates(variant, base, [key for own in known.values() for key in own], means, measured)
    seeds = max(
        (measured[code][task].seeds[variant] for own in known.values() for code, task in own), default=1
    )
    values = {name: _value(one, sign, seeds) for name, one in found.items()}
    return Row(variant, {code: values.get(code) for code in codes}, values.get("mean"))


def _name(key: Key) -> str:
    return "/".join(key)


def _estimates(
    variant: str,
    base: str,
    keys: Sequence[Key],
    means: Mapping[str, Mapping[str, float]],
    measured: Mapping[str, Mapping[str, _Measured]],
) -> dict[str, Estimate]:
    """Of each mean; one over tasks of which some cannot be resampled has no interval."""
    tasks, reasons = {}, {}
    for code, task in keys:
        one, name = measured[code][task], _name((code, task))
        if {variant, base} <= one.documents.keys():
            tasks[name] = _paired(one, variant, base)
        else:
            reasons[name] = one.reason
    resampled = {name: weights for name, weights in means.items() if weights.keys() <= tasks.keys()}
    by_task, found = estimate(tasks, resampled, num_resamples=NUM_RESAMPLES, seed=SEED)
    estimates = {name: one for name, (one,) in found.items()}
    for name, weights in resampled.items():
        if len(weights) == 1:  # the task's own: of right and wrong answers the exact test
            estimates[name] = by_task[next(iter(weights))][0]
    scores = {_name((code, task)): measured[code][task].scores for code, task in keys}
    for name in means.keys() - resampled.keys():
        weights = means[name]
        own, other = (
            sum(weight * scores[task][label] for task, weight in weights.items()) for label in (variant, base)
        )
        reason = next(reasons[task] for task in weights if task in reasons)
        estimates[name] = Estimate(other, own, own - other, reason=reason)
    return estimates


def _paired(one: _Measured, variant: str, base: str) -> Paired:
    assert one.measure is not None
    averaged = any(one.seeds.get(label, 1) > 1 for label in (variant, base))
    measure = replace(one.measure, is_accuracy=one.measure.is_accuracy and not averaged)
    return Paired(measure, one.documents[base], one.documents[variant][None])


def _value(found: Estimate, sign: float, num_seeds: int) -> Value:
    return Value(
        sign * found.difference,
        half_width=found.half_width,
        p=found.p,
        num_seeds=num_seeds,
        reason=found.reason or None,
    )
