"""The comparison of models: a row for every task and, over tasks, means; each with a verdict for every model.

Between what was read and the tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lape_ds.errors import UserError
from lape_ds.evaluation.comparing.alike import check_results, common_settings, model_settings
from lape_ds.evaluation.comparing.differences import Estimate, Paired, estimate
from lape_ds.evaluation.comparing.pairing import paired_tasks
from lape_ds.evaluation.comparing.reading import read_results, trained_languages
from lape_ds.evaluation.comparing.statistics import LEVEL, holm
from lape_ds.evaluation.results import TaskResult
from lape_ds.runlog import Progress

NUM_RESAMPLES = 10_000
SEED = 0
ACCURACY = "accuracy"  # the means' name of what is rescaled by chance, whatever the tasks' metrics
ALL_LANGUAGES, TRAINED, OTHERS = "all", "trained", "others"  # the means' names of several languages

Verdict = Literal["better", "worse", "no difference shown", "not tested"]


@dataclass(frozen=True)
class Compared:
    """One model against the base in one row.

    Attributes:
        estimate: The difference.
        p_holm: Its p, adjusted for all rows and models of the table; None where there is none.
        verdict: By that p and the direction.
    """

    estimate: Estimate
    p_holm: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Row:
    """A task, or a mean over tasks.

    Attributes:
        name: The task's; of a mean, what it is of, of which suite and language.
        title: The suite's name of the task; of a mean, what it is of.
        language: Canonical code, or `all`, or `trained` and `others`.
        metric: As the harness calls it.
        direction: Which way is better.
        random_baseline: A guesser's score; None where guessing has none, and of means, which are rescaled by it.
        num_documents: In all.
        suite: Of a mean, whose tasks; None of a task, and where results do not tell theirs.
        tasks: Of a mean, the tasks in it.
        models: Label -> that model against the base.
    """

    name: str
    title: str
    language: str
    metric: str
    direction: Literal["higher", "lower"]
    random_baseline: float | None
    num_documents: int
    suite: str | None
    tasks: tuple[str, ...]
    models: dict[str, Compared]

    @property
    def base(self) -> float:
        """The base's score."""
        return next(iter(self.models.values())).estimate.base


@dataclass(frozen=True)
class Comparison:
    """Models against a base.

    Attributes:
        base: Label of what the others are compared with.
        folders: Label -> folder of results, the base's first.
        tasks: A row for every task.
        means: A row for every mean.
        left_out: Task -> labels of the models that it was measured for, where that is not all of them.
        settings: Task -> what was the same for all models.
        model_settings: Label -> what results say of the model.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.
        trained: Languages that the runs among the models have trained; empty where their recipes are not there, or unlike.
    """

    base: str
    folders: dict[str, Path]
    tasks: list[Row]
    means: list[Row]
    left_out: dict[str, list[str]]
    settings: dict[str, dict[str, Any]]
    model_settings: dict[str, dict[str, Any]]
    num_resamples: int
    seed: int
    trained: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Mean:
    """What is averaged.

    Attributes:
        suite: Whose tasks; None where results do not tell.
        kind: `accuracy` or a metric.
        language: Or `all`, or `trained` and `others`.
        weights: Task -> weight; they sum to 1 but for the rescaling.
        offset: What the weighted sum of scores is too large by.
    """

    suite: str | None
    kind: str
    language: str
    weights: dict[str, float]
    offset: float

    @property
    def name(self) -> str:
        """E.g. `mean accuracy, monolingual, mlt_Latn`."""
        return ", ".join(filter(None, (f"mean {self.kind}", self.suite, self.language)))


def compare(
    folders: Mapping[str, Path], *, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> Comparison:
    """Compares the first of some models with each of the others.

    Args:
        folders: Label -> folder of results.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        UserError: Results or samples are missing, damaged or not measured alike, or there is no common task.
    """
    results = {label: read_results(folder) for label, folder in folders.items()}
    results, left_out = _common(results)
    check_results(results)
    base, *labels = results
    read = paired_tasks(folders, results)
    paired = {task: one for task, one in read.items() if isinstance(one, Paired)}
    trained = trained_languages(folders.values())
    means = _means(_suites(results), results[base], paired, trained)
    with Progress("resampling", total=len(paired) * num_resamples, unit="resamples") as bar:
        found, averaged = estimate(
            paired,
            {name: mean.weights for name, mean in means.items()},
            num_resamples=num_resamples,
            seed=seed,
            advance=bar.advance,
        )
    estimates = found | {task: one for task, one in read.items() if not isinstance(one, Paired)}
    return Comparison(
        base=base,
        folders=dict(folders),
        tasks=_judged([_task_row(one, labels, estimates[one.task]) for one in _ordered(results[base])]),
        means=_judged(
            [_mean_row(mean, results[base], labels, averaged[name]) for name, mean in means.items()]
        ),
        left_out=left_out,
        settings={task: common_settings(result) for task, result in results[base].items()},
        model_settings={
            label: model_settings(next(iter(model.values()))) for label, model in results.items()
        },
        num_resamples=num_resamples,
        seed=seed,
        trained=trained,
    )


def _common(
    results: Mapping[str, Mapping[str, TaskResult]],
) -> tuple[dict[str, dict[str, TaskResult]], dict[str, list[str]]]:
    """The tasks that every model has, and who has the others."""
    tasks = dict.fromkeys(task for model in results.values() for task in model)
    having = {task: [label for label, model in results.items() if task in model] for task in tasks}
    common = [task for task, labels in having.items() if len(labels) == len(results)]
    if not common:
        raise UserError(
            f"no task was measured for all of {', '.join(results)}: run `lape-ds eval` for them with one suite"
        )
    left_out = {task: labels for task, labels in having.items() if task not in set(common)}
    return {label: {task: model[task] for task in common} for label, model in results.items()}, left_out


def _ordered(results: Mapping[str, TaskResult]) -> list[TaskResult]:
    """Tasks of one title together."""
    return sorted(results.values(), key=lambda result: (result.title, result.language, result.task))


def _kind(result: TaskResult, paired: Paired) -> str:
    """What a task's score may be averaged with."""
    is_mean = paired.measure.is_ratio and result.metric != "bits_per_byte"
    chance = result.random_baseline
    return ACCURACY if is_mean and chance is not None and 0 <= chance < 1 else result.metric


def _suites(results: Mapping[str, Mapping[str, TaskResult]]) -> dict[str | None, list[str]]:
    """Suite -> the tasks that every model was measured on for it; None -> those of which that is not known."""
    first, *others = results.values()
    found: dict[str | None, list[str]] = {}
    for task, result in first.items():
        common = [suite for suite in result.suites if all(suite in model[task].suites for model in others)]
        for suite in common or [None]:
            found.setdefault(suite, []).append(task)
    return dict(sorted(found.items(), key=lambda one: (one[0] is None, one[0] or "")))


def _means(
    suites: Mapping[str | None, Sequence[str]],
    results: Mapping[str, TaskResult],
    paired: Mapping[str, Paired],
    trained: frozenset[str],
) -> dict[str, _Mean]:
    """Of each suite by itself: over all suites, what one is to gain and another must not lose would cancel out."""
    means = [
        mean
        for suite, tasks in suites.items()
        for mean in _suite_means(
            suite, results, {task: paired[task] for task in tasks if task in paired}, trained
        )
    ]
    return {mean.name: mean for mean in means}


def _suite_means(
    suite: str | None,
    results: Mapping[str, TaskResult],
    paired: Mapping[str, Paired],
    trained: frozenset[str],
) -> list[_Mean]:
    """Of each kind: over the tasks of each language that has several, and over languages, each weighing alike.

    Where both trained and other languages are among them, over each of the two: what was gained must not hide what was lost.
    """
    found: list[_Mean] = []
    kinds = {task: _kind(results[task], one) for task, one in paired.items()}
    for kind in sorted(set(kinds.values()), key=lambda kind: (kind != ACCURACY, kind)):
        own = [results[task] for task in paired if kinds[task] == kind]
        if len({result.direction for result in own}) > 1 or (
            kind == ACCURACY and own[0].direction != "higher"
        ):
            continue
        languages = {
            language: [result for result in own if result.language == language]
            for language in sorted({result.language for result in own})
        }
        found += [_mean(suite, kind, name, [tasks]) for name, tasks in languages.items() if len(tasks) > 1]
        parts = {TRAINED: languages.keys() & trained, OTHERS: languages.keys() - trained}
        parts = parts if all(parts.values()) else {ALL_LANGUAGES: languages.keys()}
        for name, codes in parts.items():
            if len(codes) > 1:
                found.append(_mean(suite, kind, name, [languages[code] for code in sorted(codes)]))
    return found


def _mean(suite: str | None, kind: str, language: str, groups: Sequence[Sequence[TaskResult]]) -> _Mean:
    """Over groups of tasks, each of which weighs alike, as do the tasks within one."""
    weights, offset = {}, 0.0
    for tasks in groups:
        for result in tasks:
            chance = result.random_baseline if kind == ACCURACY else None
            weights[result.task] = 1 / (len(groups) * len(tasks) * (1 - (chance or 0.0)))
            offset += weights[result.task] * (chance or 0.0)
    return _Mean(suite, kind, language, weights, offset)


def _task_row(result: TaskResult, labels: Sequence[str], found: Sequence[Estimate]) -> Row:
    return Row(
        name=result.task,
        title=result.title,
        language=result.language,
        metric=result.metric,
        direction=result.direction,
        random_baseline=result.random_baseline,
        num_documents=result.num_documents,
        suite=None,
        tasks=(),
        models=_unjudged(labels, found),
    )


def _mean_row(
    mean: _Mean, results: Mapping[str, TaskResult], labels: Sequence[str], found: Sequence[Estimate]
) -> Row:
    moved = [replace(one, base=one.base - mean.offset, value=one.value - mean.offset) for one in found]
    tasks = tuple(mean.weights)
    return Row(
        name=mean.name,
        title=f"mean {mean.kind}",
        language=mean.language,
        metric=mean.kind,
        direction=results[tasks[0]].direction,
        random_baseline=None,
        num_documents=sum(results[task].num_documents for task in tasks),
        suite=mean.suite,
        tasks=tasks,
        models=_unjudged(labels, moved),
    )


def _unjudged(labels: Sequence[str], found: Sequence[Estimate]) -> dict[str, Compared]:
    return {label: Compared(one, None, "not tested") for label, one in zip(labels, found, strict=True)}


def _judged(rows: Sequence[Row]) -> list[Row]:
    """The same rows with p adjusted over all of them, and verdicts."""
    tested = [one.estimate.p for row in rows for one in row.models.values() if one.estimate.p is not None]
    adjusted = iter(holm(tested))
    return [
        replace(row, models={label: _verdict(row, one, adjusted) for label, one in row.models.items()})
        for row in rows
    ]


def _verdict(row: Row, compared: Compared, adjusted: Iterable[float]) -> Compared:
    found = compared.estimate
    if found.p is None:
        return compared
    p_holm = next(iter(adjusted))
    if p_holm > LEVEL or found.difference == 0:
        return Compared(found, p_holm, "no difference shown")
    better = (found.difference > 0) == (row.direction == "higher")
    return Compared(found, p_holm, "better" if better else "worse")
