"""Suites: which harness tasks are run, how each is scored and what a guesser would score.

First module of the evaluation room: a suite is a YAML file under `eval/suites/` (or the user's own); planning
it for some languages gives the list of harness tasks that `harness.py` runs. Needs neither torch nor the
harness, so that a misspelt suite is refused at once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from lape_ds.errors import UserError
from lape_ds.languages import Language, find_language
from lape_ds.recipe import LanguageCode, Section
from lape_ds.recipe.source_text import SourceText, read_yaml
from lape_ds.resources import asset


class SuiteTask(Section):
    """One line of the table: a harness task and how to read its score."""

    # The harness's name; may hold placeholders of the language table, e.g. `belebele_{belebele}`.
    task: str = Field(min_length=1)
    # The task's parameters; strings may hold placeholders.
    metadata: dict[str, str | int | float] = Field(default_factory=dict)
    num_fewshot: int = Field(0, ge=0)
    metric: str
    direction: Literal["higher", "lower"]
    random_baseline: float | None = None  # None: guessing has no score, as for bits per byte
    left_out: dict[LanguageCode, str] = Field(default_factory=dict)  # language -> why it is not measured


class Suite(Section):
    """A named list of tasks that are run and shown together."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    tasks: dict[str, SuiteTask] = Field(min_length=1)


@dataclass(frozen=True)
class PlannedTask:
    """A suite's task for one language.

    Attributes:
        name: Unique within the plan and used in file names, e.g. `cldr_topic_mlt_Latn`.
        title: The suite's name of it, a row of the table, e.g. `topic`.
        harness_task: The name under which the harness knows it, e.g. `cldr_topic`.
        metadata: The parameters that the task's document function receives.
        language: Canonical code.
        spec: Few-shot count, metric, direction and chance.
    """

    name: str
    title: str
    harness_task: str
    metadata: dict[str, str | int | float]
    language: str
    spec: SuiteTask


def suite_names() -> list[str]:
    """Names of the shipped suites."""
    return sorted(path.stem for path in asset("eval/suites").glob("*.yaml"))


def load_suite(name_or_path: str | Path) -> Suite:
    """Reads a shipped suite by name, or any suite by the path of its YAML file.

    Raises:
        UserError: No such suite or file, broken YAML, unknown keys, wrong types, impossible values.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        if str(name_or_path) not in suite_names():
            raise UserError(
                f"unknown suite {str(name_or_path)!r}{_nearest(str(name_or_path), suite_names())} "
                f"(shipped: {', '.join(suite_names())}; or give the path of a .yaml file)"
            )
        path = asset(f"eval/suites/{name_or_path}.yaml")
    if not path.is_file():
        raise UserError(f"no suite {path}: give a shipped one ({', '.join(suite_names())}) or a .yaml file")
    source = read_yaml(path)
    try:
        # As for recipes: strict types still take lists and mappings only from JSON.
        return Suite.model_validate_json(json.dumps(source.data), strict=True)
    except ValidationError as error:
        raise UserError(_one_line(error, source)) from None


def plan(suite: Suite, languages: Sequence[str]) -> list[PlannedTask]:
    """The harness tasks of a suite for some languages, languages innermost.

    Args:
        suite: What to measure.
        languages: Any name or code of each language; doubles count once.

    Raises:
        UserError: Unknown language, one that a task's placeholders do not cover, or nothing left to run.
    """
    found = list(dict.fromkeys(find_language(language) for language in languages))
    planned = [
        _planned(title, spec, language)
        for title, spec in suite.tasks.items()
        for language in found
        if language.code not in spec.left_out
    ]
    if not planned:
        codes = ", ".join(language.code for language in found) or "no language"
        raise UserError(f"suite {suite.name} has no task for {codes}: name another with --languages")
    return planned


def _planned(title: str, spec: SuiteTask, language: Language) -> PlannedTask:
    harness_task = _filled(spec.task, title, language)
    metadata = {
        key: _filled(value, title, language) if isinstance(value, str) else value
        for key, value in spec.metadata.items()
    }
    # A task that is told its language by parameter has the same name for all: the code makes it unique.
    name = harness_task if harness_task != spec.task else f"{harness_task}_{language.code}"
    return PlannedTask(name, title, harness_task, metadata, language.code, spec)


def _filled(template: str, title: str, language: Language) -> str:
    try:
        return language.fill(template)
    except UserError as error:
        raise UserError(
            f"suite task {title!r}: {error}; name {language.code} under the task's `left_out` "
            "or leave it out of --languages"
        ) from None


def _one_line(error: ValidationError, source: SourceText) -> str:
    """`key: what is wrong, what is allowed (file:line)`."""
    faults = error.errors(include_url=False)
    # A misspelt key comes first: it often makes another one missing.
    fault = next((one for one in faults if one["type"] == "extra_forbidden"), faults[0])
    # Pydantic also names union members and `[key]`, which nobody wrote.
    keys = tuple(
        part for depth, part in enumerate(fault["loc"]) if _written(fault["loc"][: depth + 1], source.data)
    )
    if fault["type"] == "extra_forbidden":
        fields = list((Suite if len(keys) == 1 else SuiteTask).model_fields)
        what = f"unknown key{_nearest(str(keys[-1]), fields)} (allowed here: {', '.join(fields)})"
    elif fault["type"] == "missing":
        keys, what = fault["loc"], "must be given"
    elif fault["type"] == "value_error":
        what = str(fault["ctx"]["error"])  # pyright: ignore[reportTypedDictNotRequiredAccess]
    else:
        what = f"{fault['msg'][0].lower()}{fault['msg'][1:]}, not {fault['input']!r:.60}"
    return f"{'.'.join(map(str, keys)) or 'suite'}: {what} ({source.place(keys)})"


def _written(keys: Sequence[str | int], data: Any) -> bool:
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True


def _nearest(text: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(text, known, n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""
