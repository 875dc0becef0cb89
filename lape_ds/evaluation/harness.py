"""Running lm-evaluation-harness over exported models, and keeping what it found.

Last room but one on the data's way: takes plain Hugging Face folders, so that base, subnetwork and any other
checkpoint are measured by the same code. The harness builds requests, scores and aggregates; files, standard
errors, resuming and progress are ours, because its own tracker loses exceptions and recomputes everything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate as run_harness

from lape_ds import __version__
from lape_ds.errors import UserError
from lape_ds.evaluation.lm import MAX_LENGTH, HarnessModel, load_harness_model, quiet_harness
from lape_ds.evaluation.results import Score, TaskResult, read_result, standard_error, write_result
from lape_ds.evaluation.suites import PlannedTask, Suite, load_suite, plan
from lape_ds.evaluation.tasks import build_task, task_settings
from lape_ds.model.loading import fingerprint, load_tokenizer
from lape_ds.runlog import progress

# Label of a model -> name of a task -> what it scored.
Results = dict[str, dict[str, TaskResult]]


@dataclass(frozen=True)
class _Run:
    """How one call of `evaluate` measures, the same for every model."""

    tasks: dict[str, tuple[PlannedTask, Task]]  # by the planned name, in order
    output_dir: Path
    batch_size: int
    limit: int | None
    dtype: str


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
    """Measures every model on every task of a suite, skipping what `output_dir` holds from before.

    Writes `<output_dir>/<label>/<task>.json` and `<output_dir>/<label>/samples/<task>.jsonl` as each task
    ends, so that a run that was stopped goes on with the tasks that are missing. A result is taken over only
    if all that decides its numbers is the same: weights, tokenizer, task, documents, precision, versions.

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
        UserError: Unknown suite, task, metric or language, or a folder that lacks its model or tokenizer. All
            of these are found before the first model is loaded.
    """
    planned = plan(suite if isinstance(suite, Suite) else load_suite(suite), languages)
    for label, folder in models.items():
        if not (folder / "config.json").is_file():
            raise UserError(f"model {label}: no config.json in {folder}; give a Hugging Face model or a run")
        load_tokenizer(folder)
    with quiet_harness():
        tasks = {one.name: (one, build_task(one)) for one in planned}
        run = _Run(tasks, output_dir, batch_size, limit, dtype)
        return {label: _evaluate_model(label, folder, run) for label, folder in models.items()}


def _evaluate_model(label: str, folder: Path, run: _Run) -> dict[str, TaskResult]:
    """All tasks of one model, which is loaded only if a task is missing."""
    common = {
        "model_fingerprint": fingerprint(folder),
        "tokenizer_sha256": _tokenizer_hash(folder),
        "dtype": run.dtype,
        "limit": run.limit,
        "max_length": MAX_LENGTH,
        "versions": {name: version(name) for name in ("lm-eval", "transformers")} | {"lape-ds": __version__},
    }
    wanted = {name: common | task_settings(planned, task) for name, (planned, task) in run.tasks.items()}
    stored = {name: read_result(run.output_dir / label, name) for name in run.tasks}
    results = {name: found for name, found in stored.items() if found and found.settings == wanted[name]}
    missing = [name for name in run.tasks if name not in results]
    if missing:
        model = load_harness_model(folder, dtype=run.dtype, batch_size=run.batch_size)
        for name in progress(missing, f"evaluating {label}", unit="tasks"):
            planned, task = run.tasks[name]
            results[name], samples = _run_task(model, planned, task, wanted[name], limit=run.limit)
            write_result(run.output_dir / label, results[name], samples)
    return {name: results[name] for name in run.tasks}


def _run_task(
    model: HarnessModel, planned: PlannedTask, task: Task, settings: dict[str, Any], *, limit: int | None
) -> tuple[TaskResult, list[dict[str, Any]]]:
    # The harness's `simple_evaluate` is this call and half a second of listing the environment.
    found: Any = run_harness(
        model, {"tasks": {planned.name: task}}, limit=limit, bootstrap_iters=0, log_samples=True
    )
    samples = found["samples"][planned.name]
    # Keys read `metric,filter`; its own standard errors are off, for it has none for bits per byte.
    aggregates = {
        key.split(",")[0]: value for key, value in found["results"][planned.name].items() if "," in key
    }
    scores = {
        metric: Score(
            float(aggregates[metric]), standard_error(metric, [sample[metric] for sample in samples])
        )
        for metric in task.higher_is_better() or {}
    }
    arguments = json.dumps([sample["arguments"] for sample in samples], ensure_ascii=False)
    result = TaskResult(
        task=planned.name,
        language=planned.language,
        num_documents=len(samples),
        scores=scores,
        requests_sha256=_sha256(arguments.encode()),
        settings=settings,
        title=planned.title,
        metric=planned.spec.metric,
        direction=planned.spec.direction,
        random_baseline=planned.spec.random_baseline,
    )
    return result, samples


def _tokenizer_hash(folder: Path) -> str:
    """Of the files that a tokenizer is saved in, which the weights' fingerprint does not cover."""
    prefixes = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "spiece", "sentencepiece")
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.startswith(prefixes))
    return _sha256(b"".join(path.name.encode() + path.read_bytes() for path in files))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
