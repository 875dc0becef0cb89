"""Suites: which harness tasks are run, for which languages, how each is scored and what a guesser would score.

First module of the evaluation room: a suite is a YAML file under `eval/suites/` (or the user's own); planning
it for some languages gives the list of harness tasks that `harness.py` runs. Needs neither torch nor the harness,
so that a misspelt suite is refused at once; only a line that leaves metric or direction to the harness looks there.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from lape_ds.errors import UserError, refuse
from lape_ds.languages import Language, find_language
from lape_ds.recipe import LanguageCode, Section
from lape_ds.recipe.source_text import SourceText, read_yaml
from lape_ds.resources import asset

NUM_FEW_OTHERS = 2  # languages beside the trained ones, of a suite that is for `few`
HELDOUT_TASK = "heldout_bits_per_byte"  # of whichever language it is given the recipe's text
_COLUMNS = [field.name for field in fields(Language) if field.name != "aliases"]


class SuiteTask(Section):
    """One line of the table: a harness task and how to read its score."""

    # The harness's name of a task, a group or a tag (not given: the line's); may hold placeholders of the language table, e.g.
    # `belebele_{belebele}`.
    # A language without that code is left out. The documents of a group or tag are pooled into one score.
    task: str = Field(min_length=1)
    # The task's parameters; strings may hold placeholders.
    metadata: dict[str, str | int | float] = Field(default_factory=dict)
    num_fewshot: int | None = Field(None, ge=0)  # None: the task's own
    metric: str  # not given: the task's first
    direction: Literal["higher", "lower"]  # not given: the harness's
    filter: str | None = None  # of a task that reads its answers in several ways, which one; None: the first
    random_baseline: float | None = None  # None: guessing has no score, as for bits per byte
    # Only these; None: all whose codes fill the placeholders. Must be given where there is no placeholder, unless the suite's own
    # `languages` is a list of one.
    languages: list[LanguageCode] | None = Field(None, min_length=1)
    left_out: dict[LanguageCode, str] = Field(default_factory=dict)  # language -> why it is not measured

    def placeholders(self) -> list[str]:
        """Columns of the language table that the task's name and parameters hold."""
        return list(_placeholders(self.task, *self.metadata.values()))

    @model_validator(mode="after")
    def _known_placeholders(self) -> SuiteTask:
        for name in self.placeholders():
            if name not in _COLUMNS:
                raise ValueError(f"unknown placeholder {{{name}}}{_nearest(name, _COLUMNS)}")
        return self


class Suite(Section):
    """A named list of tasks that are run and shown together."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    include: str | None = None  # another suite, by name or path, whose tasks come first
    # Which languages it is run for: the recipe's trained ones, those that it identifies but does not train, both, the
    # trained and the first two others, for all of which the user may name others; or always these.
    languages: Literal["trained", "untrained", "all", "few"] | list[LanguageCode] = "trained"
    tasks: dict[str, SuiteTask] = Field(default_factory=dict)


class NothingToRun(UserError):
    """A suite has nothing for the languages asked for; other suites may have."""


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
        suites: Names of those that it is measured for.
    """

    name: str
    title: str
    harness_task: str
    metadata: dict[str, str | int | float]
    language: str
    spec: SuiteTask
    suites: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """A suite's task that is not measured in a language.

    Attributes:
        title: The suite's name of the task.
        language: Canonical code.
        reason: Why.
    """

    title: str
    language: str
    reason: str


def suite_names() -> list[str]:
    """Names of the shipped suites."""
    return sorted(path.stem for path in asset("eval/suites").glob("*.yaml"))


def load_suite(name_or_path: str | Path) -> Suite:
    """Reads a shipped suite by name, or any suite by the path of its YAML file.

    Raises:
        UserError: No such suite or file, broken YAML, unknown keys, wrong types, impossible values, no task, or
            a task that the harness does not know where metric or direction is left to it. Of several faults the last; the others
            are printed before it. The harness is asked where nothing else is wrong.
    """
    return _load(_suite_path(name_or_path), including=[])


def suite_sha256(name_or_path: str | Path) -> str:
    """Hash of a suite's file and of those that it includes, without a look at what they say.

    Raises:
        UserError: One is not there, or is no YAML.
    """
    content, path = hashlib.sha256(), _suite_path(name_or_path)
    read: list[Path] = []
    while path not in read:
        read.append(path)
        content.update(path.read_bytes())
        included, faults = _included(read_yaml(path), path)
        refuse(faults)
        path = included or path
    return content.hexdigest()


def plan(suite: Suite, languages: Sequence[str]) -> list[PlannedTask]:
    """The harness tasks of a suite for some languages, languages innermost.

    Args:
        suite: What to measure.
        languages: Any name or code of each language; doubles count once. What a task does not have is left out.

    Raises:
        NothingToRun: Nothing is left.
        UserError: Unknown language.
    """
    found = _found(languages)
    planned = [
        replace(_planned(title, spec, language), suites=(suite.name,))
        for title, spec in suite.tasks.items()
        for language in found
        if _missing(spec, language) is None
    ]
    if not planned:
        codes = ", ".join(language.code for language in found) or "no language"
        raise NothingToRun(
            f"suite {suite.name} has no task for {codes}: name another with --languages "
            f"(`lape-ds suites {suite.name}` lists what it has)"
        )
    return planned


def left_out(suite: Suite, languages: Sequence[str]) -> list[LeftOut]:
    """What `plan` leaves out, and why.

    Raises:
        UserError: Unknown language.
    """
    return [
        LeftOut(title, language.code, reason)
        for title, spec in suite.tasks.items()
        for language in _found(languages)
        if (reason := _missing(spec, language)) is not None
    ]


def suite_languages(
    suite: Suite, *, trained: Sequence[str], identified: Sequence[str], named: Sequence[str] = ()
) -> list[str]:
    """Which languages a suite is run for.

    Args:
        suite: If its `languages` is a list, it is run for these whatever is named.
        trained: Any name or code of each language that the recipe trains.
        identified: The same of all that it knows.
        named: The same of those that the user names, in place of the recipe's.

    Returns:
        Canonical codes, each once.

    Raises:
        NothingToRun: There are no such languages.
        UserError: Unknown language.
    """
    asked = [language.code for language in _found(named)]
    own = [language.code for language in _found(trained)]
    others = [language.code for language in _found(identified) if language.code not in own]
    chosen = {"trained": own, "untrained": others, "all": own + others, "few": own + others[:NUM_FEW_OTHERS]}
    codes = asked or chosen[suite.languages] if isinstance(suite.languages, str) else suite.languages
    if not codes:
        raise NothingToRun(
            f"suite {suite.name} is for {suite.languages} languages and there are none: name some with --languages, or a recipe "
            "that has some"
        )
    return list(dict.fromkeys(codes))


def _found(languages: Sequence[str]) -> list[Language]:
    return list(dict.fromkeys(find_language(language) for language in languages))


def _missing(spec: SuiteTask, language: Language) -> str | None:
    """Why a task is not measured in a language; None where it is."""
    if language.code in spec.left_out:
        return spec.left_out[language.code]
    named = spec.languages is None or language.code in spec.languages
    if not named or any(getattr(language, column) is None for column in spec.placeholders()):
        return f"no {language.name} in it"
    return None


def _planned(title: str, spec: SuiteTask, language: Language) -> PlannedTask:
    harness_task = language.fill(spec.task)
    metadata = {
        key: language.fill(value) if isinstance(value, str) else value for key, value in spec.metadata.items()
    }
    # A task that is told its language by parameter has the same name for all: the code makes it unique.
    name = harness_task if harness_task != spec.task else f"{harness_task}_{language.code}"
    return PlannedTask(name, title, harness_task, metadata, language.code, spec)


def _placeholders(*templates: str | int | float) -> Iterator[str]:
    for template in templates:
        if isinstance(template, str):
            yield from (name for _, name, _, _ in Formatter().parse(template) if name is not None)


def _load(path: Path, *, including: Sequence[Path]) -> Suite:
    """A suite with the tasks of the one that it includes; `including` are those that led here."""
    if path in including:
        raise UserError(f"suite {path} includes itself: {' → '.join(map(str, [*including, path]))}")
    source = read_yaml(path)
    left_open = _complete(source)
    included, faults = _included(source, path)
    suite, of_form = _validated(source)
    faults += of_form
    if suite is not None:
        faults += _languages_not_told(suite, source)
    refuse(faults)  # before the harness is asked, which takes seconds
    refuse(_ask_harness(source, left_open))
    suite, _ = _validated(source)
    assert suite is not None
    tasks = _of_told_languages(suite)
    if included is not None:
        tasks = _load(included, including=[*including, path]).tasks | tasks
    if not tasks:
        raise UserError(
            f"tasks: a suite must have at least one, or include another ({source.place(('tasks',))})"
        )
    return suite.model_copy(update={"tasks": tasks})


def _included(source: SourceText, path: Path) -> tuple[Path | None, list[str]]:
    """The file of the suite that is included, if one is, and what is wrong with its name."""
    name = source.data.get("include") if isinstance(source.data, dict) else None
    if not isinstance(name, str):  # what else it may be is told by the validation
        return None, []
    try:  # a path is seen from the file that names it
        return _suite_path(path.parent / name if name.endswith((".yaml", ".yml")) else name), []
    except UserError as error:
        return None, [f"include: {error} ({source.place(('include',))})"]


def _validated(source: SourceText) -> tuple[Suite | None, list[str]]:
    """The suite, or all that is wrong with its form."""
    try:
        # As for recipes: strict types still take lists and mappings only from JSON.
        return Suite.model_validate_json(json.dumps(source.data), strict=True), []
    except ValidationError as error:
        return None, _faults(error, source)


def _needs_languages(spec: SuiteTask) -> bool:
    """Whether neither a task nor its name or parameters say which language its documents are of."""
    is_told = spec.task == HELDOUT_TASK and "path" not in spec.metadata
    return spec.languages is None and not spec.placeholders() and not is_told


def _languages_not_told(suite: Suite, source: SourceText) -> list[str]:
    """Of which tasks the same documents would count as every language that the suite is run for."""
    if not isinstance(suite.languages, str) and len(suite.languages) == 1:
        return []
    return [
        f"tasks.{title}.languages: must be given, for {spec.task} has no placeholder ({{code}}) in its name or metadata that "
        f"tells its language: write `{title}: {{languages: [eng]}}` if it is English; it is then measured where the suite is "
        f"run for that language ({source.place(('tasks', title))})"
        for title, spec in suite.tasks.items()
        if _needs_languages(spec)
    ]


def _of_told_languages(suite: Suite) -> dict[str, SuiteTask]:
    """A suite's own tasks; where they do not say their language, it is the suite's one."""
    return {
        title: spec.model_copy(update={"languages": suite.languages}) if _needs_languages(spec) else spec
        for title, spec in suite.tasks.items()
    }


def _suite_path(name_or_path: str | Path) -> Path:
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
    return path.resolve()


def _complete(source: SourceText) -> dict[str, dict[str, Any]]:
    """Writes short lines out: a task without a name has the line's, and metric and direction may be left to the harness.

    Returns:
        By title the lines that leave them; until it is asked, they have some that are valid.
    """
    left_open: dict[str, dict[str, Any]] = {}
    tasks = source.data.get("tasks") if isinstance(source.data, dict) else None
    if not isinstance(tasks, dict):
        return left_open
    for title, line in tasks.items():
        line = {"task": line} if isinstance(line, str) else {} if line is None else line
        if isinstance(line, dict):
            line = {"task": title} | line
            if not {"metric", "direction"} <= line.keys() and not list(_placeholders(line["task"])):
                left_open[title] = line
                line = {"metric": "to be asked", "direction": "higher"} | line
        tasks[title] = line
    return left_open


def _ask_harness(source: SourceText, left_open: Mapping[str, dict[str, Any]]) -> list[str]:
    """Writes metric and direction of these tasks, as the harness has them; gives what is wrong with the tasks."""
    if not left_open:
        return []
    from lape_ds.evaluation.harness_tasks import default_metric  # needs the harness: seconds

    faults: list[str] = []
    for title, line in left_open.items():
        where = f"suite task {title!r} ({source.place(('tasks', title))})"
        try:
            metric, direction = default_metric(line["task"], line.get("metric"), where=where)
        except UserError as error:
            faults.append(str(error))
        else:
            source.data["tasks"][title] = {"metric": metric, "direction": direction} | line
    return faults


def _faults(error: ValidationError, source: SourceText) -> list[str]:
    """`key: what is wrong, what is allowed (file:line)` of each key with which something is wrong."""
    faults = error.errors(include_url=False)
    misspelt = {fault["loc"][:-1] for fault in faults if fault["type"] == "extra_forbidden"}
    found: dict[tuple[str | int, ...], str] = {}
    for fault in faults:
        if fault["type"] == "missing" and fault["loc"][:-1] in misspelt:
            continue  # a misspelt key often makes another one missing
        keys, line = _fault(fault, source)
        found.setdefault(keys, line)  # each of the types that a value may have tells a fault of its own
    return list(found.values())


def _fault(fault: ErrorDetails, source: SourceText) -> tuple[tuple[str | int, ...], str]:
    """Of which keys, and the line."""
    # Pydantic also names union members and `[key]`, which nobody wrote.
    keys = tuple(
        part for depth, part in enumerate(fault["loc"]) if _written(fault["loc"][: depth + 1], source.data)
    )
    if fault["type"] == "extra_forbidden":
        allowed = list((Suite if len(keys) == 1 else SuiteTask).model_fields)
        what = f"unknown key{_nearest(str(keys[-1]), allowed)} (allowed here: {', '.join(allowed)})"
    elif fault["type"] == "missing":
        keys, what = fault["loc"], "must be given"
        if keys[-1] in ("metric", "direction"):
            what += " where the task's name holds a placeholder"
    elif fault["type"] == "value_error":
        what = str(fault["ctx"]["error"])  # pyright: ignore[reportTypedDictNotRequiredAccess]
    else:
        what = f"{fault['msg'][0].lower()}{fault['msg'][1:]}, not {fault['input']!r:.60}"
    return keys, f"{'.'.join(map(str, keys)) or 'suite'}: {what} ({source.place(keys)})"


def _written(keys: Sequence[str | int], data: Any) -> bool:
    for key in keys:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True


def _nearest(text: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(text, known, n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""
