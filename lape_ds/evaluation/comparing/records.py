"""A comparison for other programs: JSON with every number and setting, and CSV with a line for every task and model.

Last on the comparison's way, beside the tables for people.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from lape_ds import __version__
from lape_ds.evaluation.comparing.comparison import ALL_LANGUAGES, OTHERS, TRAINED, Compared, Comparison, Row
from lape_ds.evaluation.comparing.statistics import LEVEL

SCHEMA_VERSION = 1


def as_json(comparison: Comparison, *, command: str) -> dict[str, Any]:
    """Everything, JSON-ready."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "comparison",
        "command": command,
        "lape_ds_version": __version__,
        "method": {
            "interval": "studentised paired bootstrap over documents, symmetric",
            "level": 1 - LEVEL,
            "num_resamples": comparison.num_resamples,
            "seed": comparison.seed,
            "p": "two-sided; exact McNemar where documents are right or wrong, else of the interval's bootstrap",
            "p_holm": "Holm over all tasks and models; over all means and models",
            "mean_accuracy": "(score - chance) / (1 - chance), mean over a suite's tasks of a language, mean over languages",
        },
        "base": comparison.base,
        "trained_languages": sorted(comparison.trained),
        "models": {
            label: {"folder": str(folder), **comparison.model_settings[label]}
            for label, folder in comparison.folders.items()
        },
        "tasks": [{**_row(row), "measured_with": comparison.settings[row.name]} for row in comparison.tasks],
        "means": [{**_row(row), "tasks": list(row.tasks)} for row in comparison.means],
        "left_out": {task: {"measured_for": labels} for task, labels in comparison.left_out.items()},
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "title": row.title,
        "suite": row.suite,
        "language": None if row.language in (ALL_LANGUAGES, TRAINED, OTHERS) else row.language,
        "metric": row.metric,
        "unit": unit(row),
        "direction": row.direction,
        "random_baseline": row.random_baseline,
        "num_documents": row.num_documents,
        "base_score": row.base,
        "models": {label: _compared(one) for label, one in row.models.items()},
    }


def _compared(compared: Compared) -> dict[str, Any]:
    found, half = compared.estimate, compared.estimate.half_width
    return {
        "score": found.value,
        "difference": found.difference,
        "half_width": half,
        "interval": None if half is None else [found.difference - half, found.difference + half],
        "p": found.p,
        "p_holm": compared.p_holm,
        "verdict": compared.verdict,
        "documents_gained": found.gained,
        "documents_lost": found.lost,
        "reason": found.reason or None,
    }


def unit(row: Row) -> str:
    """Of a row's scores and differences."""
    if row.tasks and row.metric == "accuracy":
        return "share above chance"
    return unit_of(row.metric, row.random_baseline)


def unit_of(metric: str, random_baseline: float | None) -> str:
    """Of a task's scores."""
    if metric == "bits_per_byte":
        return "bits per byte"
    if metric.startswith("chrf") or metric.endswith("bleu"):
        return "points of 100"
    return "share of documents" if random_baseline is not None else "the metric's own"


def as_csv(comparison: Comparison) -> str:
    """A line for every row and model."""
    lines = list(_lines(comparison))
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _lines(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Numbers in full; empty where there is none."""
    for kind, rows in (("task", comparison.tasks), ("mean", comparison.means)):
        for row in rows:
            own = {key: value for key, value in _row(row).items() if key != "models"}
            for label, one in row.models.items():
                compared = _compared(one)
                low, high = compared.pop("interval") or (None, None)
                yield {
                    "kind": kind,
                    **own,
                    "num_tasks": len(row.tasks) or 1,
                    "base": comparison.base,
                    "model": label,
                    **compared,
                    "interval_low": low,
                    "interval_high": high,
                }
