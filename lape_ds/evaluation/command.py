"""`lape-ds eval`: models measured and set side by side.

After the harness; on the first rank alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from lape_ds.errors import UserError
from lape_ds.evaluation.checking import check_planned
from lape_ds.evaluation.harness import Measured, Results, measure
from lape_ds.evaluation.heldout import HOW_TO_GIVE_TEXT, wants_text, with_heldout
from lape_ds.evaluation.lm import ModelSettings
from lape_ds.evaluation.prefetch import prefetch
from lape_ds.evaluation.request import EvalRequest
from lape_ds.evaluation.serving import ServedModel
from lape_ds.evaluation.subjects import named_models
from lape_ds.evaluation.suites import (
    LeftOut,
    NothingToRun,
    PlannedTask,
    Suite,
    left_out,
    load_suite,
    plan,
    suite_languages,
)
from lape_ds.evaluation.table import side_by_side
from lape_ds.recipe import Recipe


@dataclass(frozen=True)
class _Part:
    """A suite in its languages: a table."""

    suite: Suite
    planned: list[PlannedTask]
    left_out: list[LeftOut]
    without_text: list[PlannedTask]  # of held-out text, where no recipe holds any


def evaluate_command(request: EvalRequest) -> Results:
    """Measures what is named, prints a table for each suite and returns the results.

    Raises:
        UserError: Something named is not there, or only models are named without languages or output folder.
        TasksFailed: Some tasks failed; the others are measured, kept and shown.
    """
    recipe = request.recipe()
    output_dir = request.output_dir or (recipe.output_dir / "eval" if recipe else Path())
    sources = named_models(request.targets, request.overrides, packs_dir=output_dir / "packs")
    parts = _parts(request, recipe)
    check_planned(one for part in parts for one in part.planned)
    if request.prefetch:
        models = {one.label: (one.path, one.revision) for one in sources}
        prefetch(models, _each_once(parts), recipe=recipe, output_dir=output_dir)
        return {}
    tasks = with_heldout(_each_once(parts), recipe, output_dir)
    with ServedModel() as model:
        measured = measure(
            model,
            sources,
            tasks,
            settings=_settings(request, recipe),
            output_dir=output_dir,
            limit=request.limit or (recipe.eval.limit if recipe else None),
            datasets=recipe.eval.datasets if recipe else {},
        )
        _show(parts, measured, output_dir)
        measured.check()
    return measured.results


def prefetch_recipe(request: EvalRequest, recipe: Recipe) -> None:
    """Brings all that the stages of a recipe read, its suites included, and prints a line for each thing.

    Args:
        request: Of the recipe's file alone.
        recipe: That recipe.

    Raises:
        UserError: A suite is not valid, or something is missing at the end.
    """
    try:
        parts = _parts(request, recipe)
    except NothingToRun as reason:
        print(f"left out: {reason}", flush=True)
        parts = []
    check_planned(one for part in parts for one in part.planned)
    prefetch({}, _each_once(parts), recipe=recipe, output_dir=recipe.output_dir / "eval", stages=True)


def _settings(request: EvalRequest, recipe: Recipe | None) -> ModelSettings:
    if recipe is None:
        return ModelSettings(
            request.backend or "hf",
            dtype=request.dtype,
            batch_size=request.batch_size or ModelSettings.batch_size,
        )
    return ModelSettings(
        request.backend or recipe.eval.backend,
        dtype=request.dtype or recipe.model.dtype,
        batch_size=request.batch_size or recipe.eval.batch_size,
        attn_implementation=recipe.model.attn_implementation,
    )


def _suite_names(request: EvalRequest, recipe: Recipe | None) -> list[str]:
    names = request.suites or (recipe.eval.suites if recipe else ["quickstart"])
    return list(dict.fromkeys(names))


def _parts(request: EvalRequest, recipe: Recipe | None) -> list[_Part]:
    """The suites that have something to run; of another a line is printed.

    Raises:
        UserError: None has.
    """
    parts: list[_Part] = []
    reasons: list[NothingToRun] = []
    for suite in [load_suite(name) for name in _suite_names(request, recipe)]:
        try:
            parts.append(_part(suite, request, recipe))
        except NothingToRun as error:
            reasons.append(error)
    if not parts:
        raise reasons[0]
    for reason in reasons:
        print(f"left out: {reason}", flush=True)
    return parts


def _part(suite: Suite, request: EvalRequest, recipe: Recipe | None) -> _Part:
    trained, identified = (recipe.trained_languages, recipe.languages.identify) if recipe else ([], [])
    languages = suite_languages(suite, trained=trained, identified=identified, named=request.languages)
    planned = plan(suite, languages)
    without_text = [] if recipe else [one for one in planned if wants_text(one)]
    planned = [one for one in planned if one not in without_text]
    if not planned:
        raise NothingToRun(f"suite {suite.name} has no text to measure on: {HOW_TO_GIVE_TEXT}")
    return _Part(suite, planned, left_out(suite, languages), without_text)


def _each_once(parts: Sequence[_Part]) -> list[PlannedTask]:
    """The tasks of all suites: a task that two of them have is measured once.

    Raises:
        UserError: Two suites have a task of one name in different settings, whose results would have one file.
    """
    tasks: dict[str, tuple[Suite, PlannedTask]] = {}
    for part in parts:
        for one in part.planned:
            other, same = tasks.setdefault(one.name, (part.suite, one))
            if _measuring(same) != _measuring(one):
                raise UserError(
                    f"suites {other.name} and {part.suite.name} measure {one.name} in different ways: give them one at a time, "
                    "each with an --output of its own"
                )
            tasks[one.name] = other, replace(same, suites=tuple(dict.fromkeys([*same.suites, *one.suites])))
    return [one for _, one in tasks.values()]


def _measuring(one: PlannedTask) -> tuple[object, ...]:
    """What decides a task's numbers, as far as suites do."""
    return one.harness_task, one.metadata, one.spec.num_fewshot, one.spec.filter


def _show(parts: Sequence[_Part], measured: Measured, output_dir: Path) -> None:
    labels = list(measured.results)
    console = Console()
    # Rows are long and a log has no width of its own.
    console = console if console.is_terminal else Console(width=80 + 30 * len(labels))
    for part in parts:
        # Without the held-out text of languages that have none.
        shown = [one for one in part.planned if measured.knows(one.name)]
        console.print(side_by_side(shown, measured.results, title=f"{part.suite.name} suite"))
        for line in _left_out_lines(part):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print(f"results and samples: {output_dir}", soft_wrap=True, markup=False)
    if len(labels) > 1:
        named = " ".join(str(output_dir / label) for label in labels)
        console.print(f"what is significant: lape-ds compare {named}", soft_wrap=True, markup=False)


def _left_out_lines(part: _Part) -> Iterator[str]:
    """E.g. `left out: opus (mlt_Latn), sib (mlt_Latn, eng_Latn); why: lape-ds suites monolingual --languages …`."""
    if part.left_out:
        codes = ",".join(dict.fromkeys(one.language for one in part.left_out))
        yield f"left out: {_named(part.left_out)}; why: lape-ds suites {part.suite.name} --languages {codes}"
    if part.without_text:
        yield f"left out: {_named(part.without_text)}; why: there is no text to measure on: {HOW_TO_GIVE_TEXT}"


def _named(tasks: Sequence[LeftOut | PlannedTask]) -> str:
    languages: dict[str, list[str]] = {}
    for one in tasks:
        languages.setdefault(one.title, []).append(one.language)
    return ", ".join(f"{title} ({', '.join(codes)})" for title, codes in languages.items())
