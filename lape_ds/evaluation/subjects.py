"""From what the user names (recipes, runs, packs, models) to the models that are measured, each under a label of its own.

In the evaluation room, before the command.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lape_ds.errors import UserError
from lape_ds.evaluation.lm import ModelSource
from lape_ds.evaluation.request import recipe_path
from lape_ds.recipe import load_recipe
from lape_ds.subnetwork.pack import Pack
from lape_ds.training.pack_of_run import pack_of_run


def named_models(targets: Sequence[str], overrides: Sequence[str], *, packs_dir: Path) -> list[ModelSource]:
    """The models behind what is named, each once.

    Args:
        targets: Recipes (the base and every exported run), run folders and language packs (the base and it), models (folder or
            hub id).
        overrides: `key=value` for recipes and runs.
        packs_dir: Where the pack of a run that is not exported is written.

    Raises:
        UserError: A recipe or pack is not valid, or a run has no model and no pack can be made of it.
    """
    found = [source for target in targets for source in _named_by(target, overrides, packs_dir)]
    labelled: dict[str, ModelSource] = {}
    for source in dict.fromkeys(found):
        label = _free_label(source, labelled)
        labelled[label] = ModelSource(label, source.path, source.revision, source.pack)
    return list(labelled.values())


def _named_by(target: str, overrides: Sequence[str], packs_dir: Path) -> list[ModelSource]:
    path = Path(target)
    if path.suffix == ".safetensors":
        pack = Pack.load(path)
        label = path.parent.resolve().name if path.name == "pack.safetensors" else path.stem
        return [ModelSource("base", pack.base_model), ModelSource(label, pack.base_model, pack=path)]
    found = recipe_path(target)
    if found is None:
        return [ModelSource(_label(target), target)]
    recipe = load_recipe(found, overrides)
    base = ModelSource("base", recipe.model.path, recipe.model.revision)
    if found.parent == path:
        return [base, _exported(path) if _is_exported(path) else _packed(path, base, packs_dir)]
    runs = [run_dir for run_dir in (recipe.output_dir / "train").glob("*") if _is_exported(run_dir)]
    runs.sort(key=lambda run_dir: (run_dir.name.startswith("random"), run_dir.name))  # controls stand last
    return [base, *map(_exported, runs)]


def _is_exported(run_dir: Path) -> bool:
    return (run_dir / "model" / "config.json").is_file()


def _exported(run_dir: Path) -> ModelSource:
    return ModelSource(run_dir.resolve().name, str(run_dir / "model"))


def _packed(run_dir: Path, base: ModelSource, packs_dir: Path) -> ModelSource:
    """A run that is not exported yet: the base, into which its neurons are put in memory."""
    label = run_dir.resolve().name
    pack = packs_dir / f"{label}.safetensors"
    pack_of_run(run_dir).save(pack)
    return ModelSource(label, base.path, base.revision, pack)


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
