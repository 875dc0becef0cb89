"""Refusing to compare what was not measured alike.

Between reading and comparing. Models may differ, their tokenizers too; whatever else decides a score must not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lape_ds.errors import UserError
from lape_ds.evaluation.comparing.reading import HASHES, Samples
from lape_ds.evaluation.results import TaskResult

# What a result says of the model and not of how it was measured.
MODEL_SETTINGS = (
    "model_fingerprint",
    "pack_fingerprint",
    "config_sha256",
    "tokenizer_sha256",
    "attn_implementation",  # some have no other than eager
    "context_length",
    "special_token_ids",
)
_READING = ("num_documents", "metric", "direction", "random_baseline")
_SHOWN = 40  # characters of a value


@dataclass(frozen=True)
class _Difference:
    """Something that two results of a task do not have in common."""

    task: str
    models: tuple[str, str]
    what: str
    values: tuple[Any, Any]

    def __str__(self) -> str:
        shown = " against ".join(_shortened(value) for value in self.values)
        return f"{self.task} of {self.models[0]} and {self.models[1]}: {self.what} {shown}"


def common_settings(result: TaskResult) -> dict[str, Any]:
    """What a result's score is decided by, beside the model."""
    settings = {key: value for key, value in result.settings.items() if key not in MODEL_SETTINGS}
    # Where a text lies decides nothing: held-out text lies in each output folder. Which text it is, its hash tells.
    metadata = {key: value for key, value in settings.get("metadata", {}).items() if key != "path"}
    return settings | {"metadata": metadata}


def model_settings(result: TaskResult) -> dict[str, Any]:
    """What a result says of the model."""
    return {key: value for key, value in result.settings.items() if key in MODEL_SETTINGS}


def check_results(results: Mapping[str, Mapping[str, TaskResult]]) -> None:
    """Refuses results that were not measured alike.

    Args:
        results: Label -> task -> result; every model has the same tasks, and the first is the base.

    Raises:
        UserError: Says what differs, for which task and models.
    """
    (base, first), *others = results.items()
    found = [
        _Difference(task, (base, label), *difference)
        for label, model in others
        for task in first
        for difference in _result_differences(first[task], model[task])
    ]
    if found:
        _refuse(found)


def check_samples(task: str, samples: Mapping[str, Samples]) -> None:
    """Refuses samples of other documents, prompts or right answers.

    Args:
        task: Its name.
        samples: Label -> samples, the base's first.

    Raises:
        UserError: Says which, for which models.
    """
    (base, first), *others = samples.items()
    for label, model in others:
        for name in HASHES:
            pairs = zip(first.hashes[name], model.hashes[name], strict=True)
            for number, values in enumerate(pairs, start=1):
                if values[0] != values[1]:
                    _refuse([_Difference(task, (base, label), f"{name} of document {number}", values)])


def _result_differences(first: TaskResult, second: TaskResult) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The settings first: they say why the rest is another."""
    yield from _unlike(common_settings(first), common_settings(second))
    for name in (*_READING, "requests_sha256"):
        values = getattr(first, name), getattr(second, name)
        if values[0] != values[1]:
            yield name, values


def _unlike(
    first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key in dict.fromkeys((*first, *second)):
        values = first.get(key, "not told"), second.get(key, "not told")
        if isinstance(values[0], dict) and isinstance(values[1], dict):
            yield from _unlike(*values, prefix=f"{prefix}{key}.")
        elif values[0] != values[1]:
            yield f"{prefix}{key}", values


def _refuse(found: list[_Difference]) -> None:
    """Tells the first; of the rest, how many."""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    raise UserError(
        f"not measured alike: {found[0]}{more}; run `lape-ds eval` again for both, with the same suite and settings, or "
        "compare others"
    )


def _shortened(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
