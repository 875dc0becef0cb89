"""Running lm-evaluation-harness over models, and keeping what it found.

Last room but one on the data's way: takes plain Hugging Face folders, so that base, subnetwork and any other
checkpoint are measured by the same code. The harness builds requests and aggregates; answering (serving.py), files,
standard errors, resuming and progress are ours, because its own tracker loses exceptions and recomputes everything.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate as run_harness

from lape_ds import __version__
from lape_ds.corpora.hub import HubUnreachable
from lape_ds.distributed.ranks import world_size
from lape_ds.errors import UserError, tell_error
from lape_ds.evaluation.lm import ModelSettings, ModelSource, check_backend, quiet_harness
from lape_ds.evaluation.model_facts import LONGEST_WINDOW, model_facts
from lape_ds.evaluation.results import (
    Score,
    TaskResult,
    read_result,
    rewrite_result,
    standard_error,
    write_result,
)
from lape_ds.evaluation.serving import RequestsFailed, ServedModel, TasksFailed, told
from lape_ds.evaluation.suites import PlannedTask, Suite, load_suite, plan
from lape_ds.evaluation.tasks import begin_drawing, build_task, task_settings
from lape_ds.model.loading import fingerprint, load_tokenizer
from lape_ds.runlog import Progress
from lape_ds.writing import check_writable, file_sha256, told_if_unwritable, write_text

# Label of a model -> name of a task -> what it scored.
Results = dict[str, dict[str, TaskResult]]

# Of config.json: they tell who wrote the file, not what the model computes.
_NOT_OF_THE_MODEL = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")

_NAMED = 12  # failed tasks in one line

logger = logging.getLogger(__name__)


@dataclass
class Measured:
    """What has come of a call of `measure`.

    Attributes:
        results: Of the tasks that did not fail.
        failures: (label, task) -> why.
    """

    results: Results
    failures: dict[tuple[str, str], str] = field(default_factory=dict)

    def knows(self, task: str) -> bool:
        """Whether a task has been tried."""
        tried = {name for of_model in self.results.values() for name in of_model}
        return task in tried | {name for _, name in self.failures}

    def check(self) -> None:
        """Raises where a task has failed.

        Raises:
            TasksFailed: Names what failed.
        """
        if self.failures:
            labels: dict[str, list[str]] = {}
            for label, task in self.failures:
                labels.setdefault(task, []).append(label)
            failed = [
                task if len(of_task) == len(self.results) else f"{task} of {', '.join(of_task)}"
                for task, of_task in labels.items()
            ]
            more = f"; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else ""
            num_tasks = len({task for found in self.results.values() for task in found} | labels.keys())
            raise TasksFailed(
                f"{len(failed)} of {num_tasks} tasks failed ({'; '.join(failed[:_NAMED])}{more}); the others are kept, and the "
                "same command tries these again"
            )


@dataclass(frozen=True)
class _Run:
    """How one call of `measure` measures, the same for every model."""

    model: ServedModel
    tasks: dict[str, tuple[PlannedTask, Task]]  # by the planned name, in order
    settings: ModelSettings
    output_dir: Path
    limit: int | None


def evaluate(
    models: Mapping[str, Path],
    *,
    suite: str | Path | Suite,
    languages: Sequence[str],
    output_dir: Path,
    batch_size: int = 16,
    limit: int | None = None,
    dtype: str = "float32",
) -> Results:
    """Measures models in this process on every task of a suite: `measure` for those who have a folder and a suite's name.

    Args:
        models: Label -> Hugging Face folder, in the order in which they are shown.
        suite: A shipped suite's name, the path of a suite's YAML file, or a suite.
        languages: Any name or code of each language.
        output_dir: Where results go.
        batch_size: Requests per forward pass; does not change scores beyond rounding.
        limit: Documents per task, None for all.
        dtype: `float32` or `bfloat16`, of the weights; log-probabilities are always taken in float32.

    Returns:
        Label -> `PlannedTask.name` -> result.

    Raises:
        UserError: Unknown suite, language, or a folder that lacks its model or tokenizer; all of these are found before the first
            model is loaded.
        TasksFailed: Some tasks failed; the others are measured and kept.
    """
    planned = plan(suite if isinstance(suite, Suite) else load_suite(suite), languages)
    sources = [ModelSource(label, str(folder)) for label, folder in models.items()]
    settings = ModelSettings(dtype=dtype, batch_size=batch_size)
    with ServedModel() as model:
        measured = measure(model, sources, planned, settings=settings, output_dir=output_dir, limit=limit)
        measured.check()
    return measured.results


def measure(
    model: ServedModel,
    sources: Sequence[ModelSource],
    planned: Sequence[PlannedTask],
    *,
    settings: ModelSettings,
    output_dir: Path,
    limit: int | None = None,
    datasets: Mapping[str, str] | None = None,
) -> Measured:
    """Measures every model on every task, skipping what `output_dir` holds from before.

    Writes `<output_dir>/<label>/<task>.json` and `<output_dir>/<label>/samples/<task>.jsonl` as each task
    ends, so that a run that was stopped goes on with the tasks that are missing. A result is taken over only
    if all that decides its numbers is the same: weights, tokenizer, task, documents, precision, versions.
    A task that fails is told in one line (its traceback goes to `<output_dir>/<label>/errors/<task>.txt`); the others are run.

    Args:
        model: What answers, on the first rank.
        sources: In the order in which they are shown.
        planned: The tasks, each name once.
        settings: How models are loaded and asked.
        output_dir: Where results go.
        limit: Documents per task, None for all.
        datasets: Id of a data set on the hub -> local folder or file that is read in its place.

    Raises:
        UserError: A folder lacks its model or tokenizer, no task can be built, `output_dir` cannot be written, or a limited
            result would replace a complete one there.
    """
    check_backend(settings, sources, num_ranks=world_size())
    for source in sources:
        load_tokenizer(source.folder())
    if limit is not None:
        _check_nothing_complete_is_lost(sources, planned, output_dir)
    check_writable(output_dir)
    measured = Measured({source.label: {} for source in sources})
    with quiet_harness():
        tasks = _build(planned, datasets or {}, measured)
        run = _Run(model, tasks, settings, output_dir, limit)
        for source in sources:
            _measure_model(source, run, measured)
    return measured


def _check_nothing_complete_is_lost(
    sources: Sequence[ModelSource], planned: Sequence[PlannedTask], output_dir: Path
) -> None:
    """A result of some documents would take the place, and the samples, of one of all."""
    for source in sources:
        for one in planned:
            found = read_result(output_dir / source.label, one.name)
            if found is not None and found.settings["limit"] is None:
                raise UserError(
                    f"{output_dir / source.label}/{one.name}.json was measured on all documents, and --limit (eval.limit) would "
                    "replace it by a part: give --output another folder, or leave the limit out"
                )


def _build(
    planned: Sequence[PlannedTask], datasets: Mapping[str, str], measured: Measured
) -> dict[str, tuple[PlannedTask, Task]]:
    """The tasks with their documents; those that cannot be had are told at once."""
    tasks: dict[str, tuple[PlannedTask, Task]] = {}
    failed: dict[str, UserError] = {}
    for one in planned:
        try:
            tasks[one.name] = (one, build_task(one, datasets=datasets))
        except UserError as error:
            failed[one.name] = error
    if not tasks:
        raise next(iter(failed.values()))
    for line in _told_once(failed):
        tell_error(line)
    for name, error in failed.items():
        measured.failures |= {(label, name): str(error) for label in measured.results}
    return tasks


def _told_once(failed: Mapping[str, UserError]) -> Iterator[str]:
    """A line for each failure, but one alone for all tasks of a data set that cannot be reached."""
    alike: dict[str, list[str]] = {}
    for name, error in failed.items():
        dataset = error.dataset if isinstance(error, HubUnreachable) else ""
        alike.setdefault(dataset or name, []).append(name)
    for first, *others in alike.values():
        more = f" and {len(others)} more of its tasks" if others else ""
        yield f"{first}{more}: {failed[first]}"


def _measure_model(source: ModelSource, run: _Run, measured: Measured) -> None:
    """All tasks of one model, which is loaded only if a task is missing."""
    folder = run.output_dir / source.label
    common = _model_settings(source, run)
    wanted = {
        name: common | task_settings(planned, task) | _window(task, common["context_length"])
        for name, (planned, task) in run.tasks.items()
    }
    results = {
        name: found for name in run.tasks if (found := _stored(folder, run.tasks[name][0], wanted[name]))
    }
    missing = [name for name in run.tasks if name not in results]
    if missing and _loads(source, common["model_fingerprint"], missing, run, measured):
        sizes = {name: _num_documents(run.tasks[name][1], run.limit) for name in missing}
        with Progress(f"evaluating {source.label}", total=sum(sizes.values()), unit="documents") as bar:
            for number, name in enumerate(missing, start=1):
                shown = f"{name}, {number} of {len(missing)} tasks"
                ends_at = bar.done + sizes[name]
                run.model.advance = lambda share, size=sizes[name], note=shown: bar.advance(
                    share * size, note=note
                )
                found = _attempt(source.label, name, wanted[name], run, measured)
                if found is not None:
                    results[name] = found
                bar.advance(ends_at - bar.done, note=shown)
    measured.results[source.label] = {name: results[name] for name in run.tasks if name in results}


def _loads(source: ModelSource, weights: str, missing: Sequence[str], run: _Run, measured: Measured) -> bool:
    """Whether the model can be loaded; if not, that is told, and its tasks have failed."""
    errors = run.output_dir / source.label / "errors" / "loading.txt"
    try:
        run.model.load(source, run.settings, weights=weights)
    except RequestsFailed as error:
        with told_if_unwritable(str(errors), kept="finished tasks"):
            write_text(errors, error.trace)
        measured.failures |= {(source.label, name): f"cannot be loaded: {error}" for name in missing}
        tell_error(f"{source.label} cannot be loaded: {error} (where: {errors})")
        return False
    errors.unlink(missing_ok=True)
    return True


def _stored(folder: Path, planned: PlannedTask, settings: Mapping[str, Any]) -> TaskResult | None:
    """What is there from before, if it was measured alike; how the suite reads it is this suite's."""
    found = read_result(folder, planned.name)
    if found is None or found.settings != settings or planned.spec.metric not in found.scores:
        return None
    suites = list(dict.fromkeys([*found.suites, *planned.suites]))  # another suite has it, too
    read = replace(found, **_reading(planned) | {"suites": suites})
    if read != found:
        rewrite_result(folder, read)
    return read


def _attempt(
    label: str, name: str, settings: dict[str, Any], run: _Run, measured: Measured
) -> TaskResult | None:
    """Runs one task and keeps its result; a failure is told, and the next task may run."""
    planned, task = run.tasks[name]
    errors = run.output_dir / label / "errors" / f"{name}.txt"
    try:
        result, samples = _run_task(run.model, planned, task, settings, limit=run.limit)
    except Exception as error:  # of any kind: tasks bring prompts, filters and metrics of their own
        trace = error.trace if isinstance(error, RequestsFailed) else traceback.format_exc()
        with told_if_unwritable(str(errors), kept="finished tasks"):
            write_text(errors, trace)
        measured.failures[label, name] = told(error)
        tell_error(f"{label}: {name} failed: {told(error)} (where: {errors})")
        return None
    if result.num_truncated:
        logger.warning(
            "%s: %s: %d of %d requests were longer than the %d tokens that the model takes, and lost their beginning",
            label,
            name,
            result.num_truncated,
            sum(len(sample["arguments"]) for sample in samples),
            settings["context_length"],
        )
    write_result(run.output_dir / label, result, samples)
    errors.unlink(missing_ok=True)
    return result


def _run_task(
    model: ServedModel, planned: PlannedTask, task: Task, settings: dict[str, Any], *, limit: int | None
) -> tuple[TaskResult, list[dict[str, Any]]]:
    begin_drawing(task)
    model.num_truncated = 0
    # The harness's `simple_evaluate` is this call and half a second of listing the environment.
    found: Any = run_harness(
        model, {"tasks": {planned.name: task}}, limit=limit, bootstrap_iters=0, log_samples=True
    )
    asked = [(one.request_type, one.doc_id, one.args) for one in task.instances]
    task._instances = None  # gigabytes, over a long suite
    samples = found["samples"][planned.name]
    scores = _scores(found["results"][planned.name], samples, task)
    if planned.spec.metric not in scores:
        raise UserError(
            f"{planned.spec.metric} is no finite number: the model's outputs are broken, or the metric"
        )
    result = TaskResult(
        task=planned.name,
        language=planned.language,
        num_documents=len(samples),
        scores=scores,
        requests_sha256=_sha256(json.dumps(asked, ensure_ascii=False, default=str).encode()),
        settings=settings,
        num_truncated=model.num_truncated,
        **_reading(planned),
    )
    return result, samples


def _reading(planned: PlannedTask) -> dict[str, Any]:
    """How a suite reads a result; does not change its numbers."""
    spec = planned.spec
    return {
        "title": planned.title,
        "metric": spec.metric,
        "direction": spec.direction,
        "random_baseline": spec.random_baseline,
        "suites": list(planned.suites),
    }


def _scores(
    aggregates: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], task: Task
) -> dict[str, Score]:
    """The task's metrics that are finite numbers. A task reads its answers in one way (filter), which tasks.py has chosen."""
    scores: dict[str, Score] = {}
    for metric in task.higher_is_better() or {}:
        value = aggregates.get(f"{metric},{samples[0]['filter']}")
        if isinstance(value, int | float) and math.isfinite(value):
            # The harness's own standard errors are off, for it has none for bits per byte.
            stderr = standard_error(metric, [sample[metric] for sample in samples])
            scores[metric] = Score(float(value), stderr)
    return scores


def _num_documents(task: Task, limit: int | None) -> int:
    whole = len(task.eval_docs)
    return whole if limit is None else min(limit, whole)


def _model_settings(source: ModelSource, run: _Run) -> dict[str, Any]:
    """All of a model and of how it is asked that decides its numbers, for its results."""
    folder, settings = source.folder(), run.settings
    facts = model_facts(folder, dtype=settings.dtype, attn_implementation=settings.attn_implementation)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in _NOT_OF_THE_MODEL}
    packages = ["lm-eval", "transformers", *(["vllm"] if settings.backend == "vllm" else [])]
    return {
        "model_fingerprint": fingerprint(folder),
        "pack_fingerprint": None if source.pack is None else file_sha256(source.pack),
        "config_sha256": _sha256(json.dumps(kept, sort_keys=True).encode()),
        "tokenizer_sha256": _tokenizer_hash(folder),
        "backend": settings.backend,
        "dtype": facts.dtype,
        "limit": run.limit,
        "attn_implementation": facts.attn_implementation if settings.backend == "hf" else None,
        "context_length": facts.context_length,
        "special_token_ids": facts.special_token_ids,
        "versions": {name: version(name) for name in packages} | {"lape-ds": __version__},
    }


def _window(task: Task, context_length: int) -> dict[str, int]:
    """What bits per byte are also decided by; of no other task, which models of unlike contexts answer alike."""
    if task.OUTPUT_TYPE != "loglikelihood_rolling":
        return {}
    return {"rolling_window": min(LONGEST_WINDOW, context_length)}


def _tokenizer_hash(folder: Path) -> str:
    """Of the files that a tokenizer is saved in, which the weights' fingerprint does not cover."""
    prefixes = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "spiece", "sentencepiece")
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.startswith(prefixes))
    return _sha256(b"".join(path.name.encode() + path.read_bytes() for path in files))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
