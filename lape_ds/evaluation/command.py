"""`lape-ds eval`: from what the user names (recipe, runs, models) to models measured and set side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lape_ds.errors import UserError
from lape_ds.evaluation.harness import Results, evaluate
from lape_ds.evaluation.prefetch import prefetch
from lape_ds.evaluation.suites import load_suite, plan
from lape_ds.evaluation.table import side_by_side
from lape_ds.model.loading import resolve_model
from lape_ds.recipe import Recipe, load_recipe
from lape_ds.recipe.environment import enter_environment

NUM_OTHER_LANGUAGES = 2  # beside the target, when the user names no language


@dataclass(frozen=True)
class _Subject:
    """A model to measure: a folder or hub id, and what it is called in the table."""

    label: str
    path: str
    revision: str | None = None


def evaluate_command(
    targets: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    suite: str | None = None,
    languages: Sequence[str] = (),
    output_dir: Path | None = None,
    batch_size: int | None = None,
    limit: int | None = None,
    prefetch_only: bool = False,
) -> Results:
    """Measures what is named, prints the table and returns the results.

    Args:
        targets: Recipes (the base and every exported run), run folders (the base and this run's model),
            models (folder or hub id).
        overrides: `key=value` for recipes.
        suite: Name or path; None: the recipe's, or `quickstart`.
        languages: Any names; empty: the recipe's target and two further languages that it identifies.
        output_dir: Where results go; None: `eval/` in the recipe's output folder.
        batch_size: None: the recipe's, or 16.
        limit: Documents per task; None: the recipe's, or all.
        prefetch_only: Bring models and data to this machine and measure nothing.

    Raises:
        UserError: Something named is not there, or only models are named without languages or output folder.
    """
    recipe, subjects = _subjects(targets, overrides)
    if recipe is None and (not languages or output_dir is None):
        raise UserError(
            "models alone say neither language nor output folder: give --languages (mlt,eng) and --output DIR"
        )
    if recipe is not None:
        enter_environment(recipe.env)
        languages = languages or _default_languages(recipe)
        output_dir = output_dir or recipe.output_dir / "eval"
    assert output_dir is not None
    chosen = load_suite(suite or (recipe.eval.suite if recipe else "quickstart"))
    if prefetch_only:
        prefetch({one.label: (one.path, one.revision) for one in subjects}, plan(chosen, languages))
        return {}
    results = evaluate(
        {one.label: resolve_model(one.path, one.revision) for one in subjects},
        suite=chosen,
        languages=languages,
        output_dir=output_dir,
        batch_size=batch_size or (recipe.eval.batch_size if recipe else 16),
        limit=limit or (recipe.eval.limit if recipe else None),
        dtype=recipe.model.dtype if recipe else "float32",
    )
    console = Console()
    # Rows are long and a log has no width of its own.
    console = console if console.is_terminal else Console(width=80 + 30 * len(results))
    console.print(side_by_side(plan(chosen, languages), results, title=f"{chosen.name} suite"))
    console.print(f"results and samples: {output_dir}")
    return results


def _subjects(targets: Sequence[str], overrides: Sequence[str]) -> tuple[Recipe | None, list[_Subject]]:
    """The models behind what the user named, each once and under its own label, and the first recipe met."""
    first: Recipe | None = None
    subjects: dict[str, _Subject] = {}
    for target in targets:
        recipe, found = _named_by(target, overrides)
        first = first or recipe
        for subject in found:
            same_label = subjects.setdefault(subject.label, subject)
            if same_label != subject:
                longer = f"{Path(subject.path).parent.name}-{subject.label}"
                subjects[longer] = _Subject(longer, subject.path, subject.revision)
    if not subjects:
        raise UserError("name at least one recipe, run folder or model to evaluate")
    return first, list(subjects.values())


def _named_by(target: str, overrides: Sequence[str]) -> tuple[Recipe | None, list[_Subject]]:
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        recipe = load_recipe(path, overrides)
        runs = [config.parent.parent for config in (recipe.output_dir / "train").glob("*/model/config.json")]
        runs.sort(
            key=lambda run_dir: (run_dir.name.startswith("random"), run_dir.name)
        )  # controls stand last
        return recipe, [_base(recipe), *map(_exported, runs)]
    if (path / "recipe.yaml").is_file():
        if not (path / "model" / "config.json").is_file():
            raise UserError(f"run {path} has no exported model: run `lape-ds export {path}` first")
        recipe = load_recipe(path / "recipe.yaml", [])
        return recipe, [_base(recipe), _exported(path)]
    return None, [_Subject(path.name, target)]


def _base(recipe: Recipe) -> _Subject:
    return _Subject("base", recipe.model.path, recipe.model.revision)


def _exported(run_dir: Path) -> _Subject:
    return _Subject(run_dir.name, str(run_dir / "model"))


def _default_languages(recipe: Recipe) -> list[str]:
    others = [code for code in recipe.languages.identify if code != recipe.languages.target]
    return [recipe.languages.target, *others[:NUM_OTHER_LANGUAGES]]
