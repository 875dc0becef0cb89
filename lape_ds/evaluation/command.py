"""`lape-ds eval`: models measured and set side by side.

After the harness; on the first rank alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lape_ds.errors import UserError
from lape_ds.evaluation.harness import Measured, Results, measure
from lape_ds.evaluation.lm import ModelSettings
from lape_ds.evaluation.request import EvalRequest
from lape_ds.evaluation.serving import ServedModel
from lape_ds.evaluation.subjects import named_models
from lape_ds.evaluation.suites import PlannedTask, Suite, load_suite, plan
from lape_ds.evaluation.table import side_by_side
from lape_ds.recipe import Recipe

NUM_OTHER_LANGUAGES = 2  # beside the target, when the user names no language


def evaluate_command(request: EvalRequest) -> Results:
    """Measures what is named, prints a table for each suite and returns the results.

    Raises:
        UserError: Something named is not there, or only models are named without languages or output folder.
        TasksFailed: Some tasks failed; the others are measured, kept and shown.
    """
    sources = named_models(request.targets, request.overrides)
    recipe = request.recipe()
    output_dir = request.output_dir or (recipe.output_dir / "eval" if recipe else Path())
    plans = _plans(request, recipe)
    with ServedModel() as model:
        measured = measure(
            model,
            sources,
            _each_once(plans),
            settings=_settings(request, recipe),
            output_dir=output_dir,
            limit=request.limit or (recipe.eval.limit if recipe else None),
        )
        _show(plans, measured, output_dir)
        measured.check()
    return measured.results


def _settings(request: EvalRequest, recipe: Recipe | None) -> ModelSettings:
    if recipe is None:
        return ModelSettings(
            request.backend or "hf", batch_size=request.batch_size or ModelSettings.batch_size
        )
    return ModelSettings(
        request.backend or recipe.eval.backend,
        dtype=recipe.model.dtype,
        batch_size=request.batch_size or recipe.eval.batch_size,
    )


def _plans(request: EvalRequest, recipe: Recipe | None) -> list[tuple[Suite, list[PlannedTask]]]:
    names = request.suites or [recipe.eval.suite if recipe else "quickstart"]
    suites = [load_suite(name) for name in dict.fromkeys(names)]
    return [(suite, plan(suite, _languages(request, recipe))) for suite in suites]


def _languages(request: EvalRequest, recipe: Recipe | None) -> Sequence[str]:
    if request.languages or recipe is None:
        return request.languages
    others = [code for code in recipe.languages.identify if code != recipe.languages.target]
    return [recipe.languages.target, *others[:NUM_OTHER_LANGUAGES]]


def _each_once(plans: Sequence[tuple[Suite, Sequence[PlannedTask]]]) -> list[PlannedTask]:
    """The tasks of all suites: a task that two of them have is measured once.

    Raises:
        UserError: Two suites have a task of one name in different settings, whose results would have one file.
    """
    tasks: dict[str, tuple[Suite, PlannedTask]] = {}
    for suite, planned in plans:
        for one in planned:
            other, same = tasks.setdefault(one.name, (suite, one))
            if (same.harness_task, same.metadata, same.spec.num_fewshot) != (
                one.harness_task,
                one.metadata,
                one.spec.num_fewshot,
            ):
                raise UserError(
                    f"suites {other.name} and {suite.name} measure {one.name} in different ways: give them one at a time, each "
                    "with an --output of its own"
                )
    return [one for _, one in tasks.values()]


def _show(plans: Sequence[tuple[Suite, Sequence[PlannedTask]]], measured: Measured, output_dir: Path) -> None:
    labels = list(measured.results)
    console = Console()
    # Rows are long and a log has no width of its own.
    console = console if console.is_terminal else Console(width=80 + 30 * len(labels))
    for suite, planned in plans:
        console.print(side_by_side(planned, measured.results, title=f"{suite.name} suite"))
    console.print(f"results and samples: {output_dir}", soft_wrap=True)
    if len(labels) > 1:
        named = " ".join(str(output_dir / label) for label in labels)
        console.print(f"what is significant: lape-ds compare {named}", soft_wrap=True, markup=False)
