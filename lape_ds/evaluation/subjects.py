"""From what the user names (recipes, runs, models) to the models that are measured, each under a label of its own.

In the evaluation room, before the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lape_ds.errors import UserError
from lape_ds.evaluation.lm import ModelSource
from lape_ds.evaluation.request import recipe_path
from lape_ds.recipe import load_recipe


def named_models(targets: Sequence[str], overrides: Sequence[str]) -> list[ModelSource]:
    """The models behind what is named, each once.

    Args:
        targets: Recipes (the base and every exported run), run folders (the base and this run), models (folder or hub id).
        overrides: `key=value` for recipes and runs.

    Raises:
        UserError: Nothing is named, a recipe is not valid, or a run is not exported.
    """
    found = [source for target in targets for source in _named_by(target, overrides)]
    if not found:
        raise UserError("name at least one recipe, run folder or model to evaluate")
    labelled: dict[str, ModelSource] = {}
    for source in dict.fromkeys(found):
        label = _free_label(source, labelled)
        labelled[label] = ModelSource(label, source.path, source.revision, source.pack)
    return list(labelled.values())


def _named_by(target: str, overrides: Sequence[str]) -> list[ModelSource]:
    found = recipe_path(target)
    if found is None:
        return [ModelSource(_label(target), target)]
    recipe = load_recipe(found, overrides)
    base = ModelSource("base", recipe.model.path, recipe.model.revision)
    if found.parent == Path(target):
        run_dir = Path(target)
        if not (run_dir / "model" / "config.json").is_file():
            raise UserError(f"run {run_dir} has no exported model: run `lape-ds export {run_dir}` first")
        return [base, _exported(run_dir)]
    runs = [config.parent.parent for config in (recipe.output_dir / "train").glob("*/model/config.json")]
    runs.sort(key=lambda run_dir: (run_dir.name.startswith("random"), run_dir.name))  # controls stand last
    return [base, *map(_exported, runs)]


def _exported(run_dir: Path) -> ModelSource:
    return ModelSource(run_dir.resolve().name, str(run_dir / "model"))


def _label(target: str) -> str:
    """The last part of a path or hub id; of an exported run, the run's name."""
    path = Path(target)
    if not path.exists():
        return path.name
    path = path.resolve()
    return path.parent.name if path.name == "model" and (path.parent / "recipe.yaml").is_file() else path.name


def _free_label(source: ModelSource, taken: dict[str, ModelSource]) -> str:
    """Its own label, longer by as many folders as set it apart from other models of that name."""
    label = source.label
    for folder in Path(source.path).absolute().parents:
        if label not in taken:
            return label
        label = f"{folder.name}-{label}"
    raise UserError(
        f"two models are called {source.label}: measure them into different folders with --output"
    )
