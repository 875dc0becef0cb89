"""What one model scored on one task: the file between `lape-ds eval` and whatever compares or reports.

A result carries every setting that decides its numbers, so that a task already measured alike is not measured
again, and two results measured unlike are never set side by side by mistake.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy

from lape_ds.errors import UserError
from lape_ds.writing import told_if_unwritable, write_json, write_text

SCHEMA_VERSION = 2


@dataclass(frozen=True)
class Score:
    """A metric over all documents of a task.

    Attributes:
        value: The harness's aggregate.
        stderr: Standard error over documents; None where it has no closed form.
    """

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskResult:
    """One model on one task.

    Attributes:
        task: Name within the plan, e.g. `cldr_topic_mlt_Latn`.
        language: Canonical code.
        num_documents: How many were scored.
        scores: Every metric of the task that is a finite number.
        requests_sha256: Hash of every argument of every request, generation's included, in order: equal prompts, equal hash.
        settings: All that decides the scores, model fingerprint and versions included.
        title: The suite's name of the task.
        metric: Of `scores`, the one that the suite reads.
        direction: Of that metric, which way is better.
        random_baseline: A guesser's score in that metric; None where guessing has none.
        num_truncated: Requests that were longer than the model takes, and lost their beginning.
        suites: Names of those that it was measured for; empty where an older lape-ds has written it.
    """

    task: str
    language: str
    num_documents: int
    scores: dict[str, Score]
    requests_sha256: str
    settings: dict[str, Any]
    title: str
    metric: str
    direction: Literal["higher", "lower"]
    random_baseline: float | None
    num_truncated: int = 0
    suites: list[str] = field(default_factory=list)


def write_result(folder: Path, result: TaskResult, samples: Sequence[Mapping[str, Any]]) -> None:
    """Writes `samples/<task>.jsonl`, then `<task>.json`: a result that is there has its samples.

    Raises:
        UserError: The filesystem refuses.
    """
    lines = [json.dumps(sample, ensure_ascii=False, default=_plain) + "\n" for sample in samples]
    path = folder / "samples" / f"{result.task}.jsonl"
    with told_if_unwritable(str(path), kept="finished tasks"):
        write_text(path, "".join(lines))
    rewrite_result(folder, result)


def rewrite_result(folder: Path, result: TaskResult) -> None:
    """Writes `<task>.json` of a result whose samples are there.

    Raises:
        UserError: The filesystem refuses.
    """
    path = folder / f"{result.task}.json"
    with told_if_unwritable(str(path), kept="finished tasks"):
        write_json(path, {"schema_version": SCHEMA_VERSION} | asdict(result))


def read_result(folder: Path, task: str) -> TaskResult | None:
    """The stored result of a task, None where there is none.

    Raises:
        UserError: The file is there but is not a result of this version.
    """
    path = folder / f"{task}.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError("written by another version of lape-ds")
        scores = {metric: Score(**score) for metric, score in content.pop("scores").items()}
        return TaskResult(scores=scores, **content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not an evaluation result ({error}): delete it to measure again"
        ) from error


def standard_error(metric: str, values: Sequence[Any]) -> float | None:
    """Standard error over documents of a mean, or of bits per byte; None for any other kind of metric.

    The harness gives none for bits per byte. That is a ratio of sums, so its error is that of the documents'
    residuals: r_i = bits_i − ratio · bytes_i, error = sd(r) / (√n · mean bytes).

    Args:
        metric: The harness's name of it.
        values: Per document: a number, or for `bits_per_byte` the pair (log-likelihood in nats, bytes).

    Source: Cochran, Sampling Techniques, 3rd ed., 1977, section 2.11 (ratio estimate).
    """
    num = len(values)
    if num < 2:
        return None
    if metric == "bits_per_byte":
        bits = [-log_likelihood / math.log(2) for log_likelihood, _ in values]
        sizes = [num_bytes for _, num_bytes in values]
        ratio = sum(bits) / sum(sizes)
        residuals = [bit - ratio * size for bit, size in zip(bits, sizes, strict=True)]
        return _standard_deviation(residuals) / (math.sqrt(num) * sum(sizes) / num)
    if all(isinstance(value, int | float) for value in values):
        return _standard_deviation(values) / math.sqrt(num)
    return None


def _standard_deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _plain(value: Any) -> Any:
    """What JSON has no form for, in samples and documents: a number of numpy as Python's, else its words (dates, images)."""
    return value.item() if isinstance(value, numpy.generic) else str(value)
