"""From what the user names (recipes, runs, packs, models) to the models that are measured, each under a label of its own.

In the evaluation room, before the command.
"""

from __future__ import annotations

import hashlib
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
    found: dict[ModelSource, Path] = {}
    for target in targets:
        for source, place in _named_by(target, overrides, packs_dir):
            found.setdefault(source, place)
    labelled: dict[str, ModelSource] = {}
    for source, place in found.items():
        label = _free_label(source.label, place, labelled)
        labelled[label] = ModelSource(label, source.path, source.revision, source.pack)
    return list(labelled.values())


def _named_by(target: str, overrides: Sequence[str], packs_dir: Path) -> list[tuple[ModelSource, Path]]:
    """Each with the place that its label is from, whose folders tell it from others of that name."""
    path = Path(target)
    if path.suffix == ".safetensors":
        pack = Pack.load(path)
        place = path.parent.resolve() if path.name == "pack.safetensors" else path.with_suffix("")
        base = ModelSource("base", pack.base_model, pack.base_revision)
        return [(base, Path(base.path)), (ModelSource(place.name, base.path, base.revision, path), place)]
    found = recipe_path(target)
    if found is None:
        return [(ModelSource(_place(target).name, target), _place(target))]
    recipe = load_recipe(found, overrides)
    base = ModelSource("base", recipe.model.path, recipe.model.revision)
    if found.parent == path:
        run = _exported(path) if _is_exported(path) else _packed(path, base, packs_dir)
        return [(base, Path(base.path)), run]
    runs = [run_dir for run_dir in (recipe.output_dir / "train").glob("*") if _is_exported(run_dir)]
    runs.sort(key=lambda run_dir: (run_dir.name.startswith("random"), run_dir.name))  # controls stand last
    return [(base, Path(base.path)), *map(_exported, runs)]


def _is_exported(run_dir: Path) -> bool:
    return (run_dir / "model" / "config.json").is_file()


def _exported(run_dir: Path) -> tuple[ModelSource, Path]:
    return ModelSource(run_dir.resolve().name, str(run_dir / "model")), run_dir.resolve()


def _packed(run_dir: Path, base: ModelSource, packs_dir: Path) -> tuple[ModelSource, Path]:
    """A run that is not exported yet: the base, into which its neurons are put in memory."""
    place = run_dir.resolve()
    # Runs of several recipes may have one name: their packs must not be one file.
    pack = packs_dir / f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:12]}.safetensors"
    pack_of_run(run_dir).save(pack)
    return ModelSource(place.name, base.path, base.revision, pack), place


def _place(target: str) -> Path:
    """Of a model, the path or hub id that ends in its label; of an exported run, the run."""
    path = Path(target)
    if not path.exists():
        return path
    path = path.resolve()
    return path.parent if path.name == "model" and (path.parent / "recipe.yaml").is_file() else path


def _free_label(own: str, place: Path, taken: dict[str, ModelSource]) -> str:
    """Its own label, longer by as many folders as set it apart from other models of that name."""
    label = own
    for folder in place.absolute().parents:
        if label not in taken:
            return label
        label = f"{folder.name}-{label}"
    raise UserError(f"two models are called {own}: measure them into different folders with --output")
