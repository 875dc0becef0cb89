"""From what the user names (recipes, runs, packs, models) to the models that are measured, each under a label of its own.

In the evaluation room, before the command.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from lape_ds.errors import UserError
from lape_ds.evaluation.lm import ModelSource
from lape_ds.evaluation.naming import check_named, free_label, model_place, pack_place, run_place
from lape_ds.evaluation.request import recipe_path
from lape_ds.recipe import load_recipe
from lape_ds.subnetwork.pack import Pack
from lape_ds.training.pack_of_run import pack_of_run


def named_models(targets: Sequence[str], overrides: Sequence[str], *, packs_dir: Path) -> list[ModelSource]:
    """The models behind what is named, each once.

    Args:
        targets: Recipes (the base and every run that is exported or can be made a pack of), run folders and language packs
            (the base and it), models (folder or hub id).
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
        label = free_label(source.label, place, labelled)
        labelled[label] = ModelSource(label, source.path, source.revision, source.pack)
    return list(labelled.values())


def _named_by(target: str, overrides: Sequence[str], packs_dir: Path) -> list[tuple[ModelSource, Path]]:
    """Each with the place that its label is from, whose folders tell it from others of that name."""
    path = Path(target)
    if path.suffix == ".safetensors":
        pack = Pack.load(path)
        place = pack_place(path)
        base = ModelSource("base", pack.base_model, pack.base_revision)
        return [(base, Path(base.path)), (ModelSource(place.name, base.path, base.revision, path), place)]
    found = recipe_path(target)
    if found is None:
        check_named(target)
        return [(ModelSource(model_place(target).name, target), model_place(target))]
    recipe = load_recipe(found, overrides)
    base = ModelSource("base", recipe.model.path, recipe.model.revision)
    if found.parent == path:
        run = _exported(path) if _is_exported(path) else _packed(path, base, packs_dir)
        return [(base, Path(base.path)), run]
    return [(base, Path(base.path)), *_runs(recipe.output_dir / "train", base, packs_dir)]


def _runs(folder: Path, base: ModelSource, packs_dir: Path) -> list[tuple[ModelSource, Path]]:
    """A recipe's runs, controls last; of what cannot be measured yet, why."""
    runs = [path.parent for path in folder.glob("*/recipe.yaml")]
    runs += [path.parents[1] for path in folder.glob("*/model/config.json") if path.parents[1] not in runs]
    found: list[tuple[ModelSource, Path]] = []
    for run_dir in sorted(runs, key=lambda run_dir: (run_dir.name.startswith("random"), run_dir.name)):
        if _is_exported(run_dir):
            found.append(_exported(run_dir))
            continue
        try:
            found.append(_packed(run_dir, base, packs_dir))
        except UserError as error:
            print(f"left out: {run_dir.name}, which is not exported: {error}", file=sys.stderr, flush=True)
    return found


def _is_exported(run_dir: Path) -> bool:
    return (run_dir / "model" / "config.json").is_file()


def _exported(run_dir: Path) -> tuple[ModelSource, Path]:
    return ModelSource(run_dir.resolve().name, str(run_dir / "model")), run_place(run_dir)


def _packed(run_dir: Path, base: ModelSource, packs_dir: Path) -> tuple[ModelSource, Path]:
    """A run that is not exported yet: the base, into which its neurons are put in memory."""
    place = run_dir.resolve()
    # Runs of several recipes may have one name: their packs must not be one file.
    pack = packs_dir / f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:12]}.safetensors"
    pack_of_run(run_dir).save(pack)
    return ModelSource(place.name, base.path, base.revision, pack), run_place(run_dir)
