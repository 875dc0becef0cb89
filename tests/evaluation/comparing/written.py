"""Folders of results with known values, written by what `lape-ds eval` writes them with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lape_ds.evaluation.comparing.measures import NoMeasure, measured
from lape_ds.evaluation.results import Score, TaskResult, write_result
from lape_ds.writing import write_json

SETTINGS: dict[str, Any] = {
    "model_fingerprint": "ab",
    "tokenizer_sha256": "cd",
    "dtype": "float32",
    "limit": None,
    "max_length": 4096,
    "num_fewshot": 0,
    "versions": {"lm-eval": "0.4.13", "transformers": "5.23.0", "lape-ds": "0.5.0"},
}


def write_task(folder: Path, values: Sequence[Any], *, title: str = "topic", **changes: Any) -> TaskResult:
    """One task's result and samples, with a value for each document; `changes` are of the result."""
    language = changes.get("language", "mlt_Latn")
    metric = changes.get("metric", "acc")
    result = replace(
        TaskResult(
            task=f"{title}_{language}",
            language=language,
            num_documents=len(values),
            scores={metric: Score(score(metric, values), None)},
            requests_sha256=_hash(f"{title} {language} {len(values)}"),
            settings=SETTINGS,
            title=title,
            metric=metric,
            direction="higher",
            random_baseline=0.25,
        ),
        **changes,
    )
    samples = [
        {
            "doc_id": number,
            "filter": "none",
            "doc_hash": _hash(f"{title} {language} {number}"),
            "prompt_hash": _hash(f"prompt {number}"),
            "target_hash": _hash(f"target {number}"),
            metric: value,
        }
        for number, value in enumerate(values)
    ]
    write_result(folder, result, samples)
    return result


def score(metric: str, values: Sequence[Any]) -> float:
    """As the harness makes it of documents; 0.5 where that is none of our measures."""
    try:
        measure, contributions = measured(metric, values)
    except NoMeasure:
        return 0.5
    return float(measure.value(contributions.sum(axis=0)))


def answers(num: int, *, right: float, seed: int) -> list[float]:
    """0 or 1 for each document."""
    return (np.random.default_rng(seed).random(num) < right).astype(float).tolist()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def change_result(folder: Path, **changes: Any) -> None:
    """Of the only task in a folder."""
    (path,) = folder.glob("*.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert changes.keys() <= content.keys()
    write_json(path, content | changes)
