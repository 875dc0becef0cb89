"""From what the user names to folders: runs, recipes, matrices.

Before everything else of the report.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lape_ds.errors import UserError
from lape_ds.recipe import load_matrix, load_recipe
from lape_ds.recipe.loading import recipe_file
from lape_ds.recipe.source_text import read_yaml

_STAGES = ("train", "identify", "sweep", "eval", "ablation")  # folders by which a recipe's output is known


@dataclass(frozen=True)
class RecipeFolder:
    """What a recipe's stages have written.

    Attributes:
        folder: Its `output_dir`.
        name: As commands take it: the recipe's path.
    """

    folder: Path
    name: str

    def run_folders(self) -> list[Path]:
        """Its trainings, but for those of its sweep, which the frontier tells of."""
        train = self.folder / "train"
        found = sorted(path.parent for path in train.rglob("run.json")) if train.is_dir() else []
        return [path for path in found if path.relative_to(train).parts[0] != "sweep"]


@dataclass(frozen=True)
class MatrixFolder:
    """What a matrix has written.

    Attributes:
        folder: Its `output_dir`.
        name: As commands take it: its file.
    """

    folder: Path
    name: str


@dataclass(frozen=True)
class Subjects:
    """What a page tells of.

    Attributes:
        runs: Folders of runs that were named.
        recipes: Recipes that were named.
        matrices: Matrices that were named.
    """

    runs: tuple[Path, ...]
    recipes: tuple[RecipeFolder, ...]
    matrices: tuple[MatrixFolder, ...]

    @property
    def folder(self) -> Path:
        """Where the page goes by default: the one folder named, or the nearest that holds all."""
        named = [*self.runs, *(one.folder for one in (*self.recipes, *self.matrices))]
        return Path(os.path.commonpath([path.resolve() for path in named]))


def find_subjects(targets: Sequence[str], overrides: Sequence[str]) -> Subjects:
    """Sorts what the user names.

    Args:
        targets: Run folders, recipes or their output folders, matrix files or their folders.
        overrides: `key=value`, for recipes.

    Raises:
        UserError: Something named is neither, or a recipe is not valid.
    """
    if not targets:
        raise UserError("nothing to tell of: name a run folder, a recipe or a matrix file")
    found = [_find(target, overrides) for target in targets]
    return Subjects(
        runs=tuple(one for one in found if isinstance(one, Path)),
        recipes=tuple(one for one in found if isinstance(one, RecipeFolder)),
        matrices=tuple(one for one in found if isinstance(one, MatrixFolder)),
    )


def _find(target: str, overrides: Sequence[str]) -> Path | RecipeFolder | MatrixFolder:
    path = Path(target)
    if path.is_dir():
        return _find_folder(path, target)
    if "recipes" in read_yaml(recipe_file(path)).data:
        return MatrixFolder(load_matrix(path, overrides).output_dir, target)
    return RecipeFolder(load_recipe(path, overrides).output_dir, target)


def _find_folder(path: Path, target: str) -> Path | RecipeFolder | MatrixFolder:
    if (path / "run.json").is_file():
        return path
    if _is_matrix(path / "table.json"):
        return MatrixFolder(path, target)
    if any((path / stage).is_dir() for stage in _STAGES):
        return RecipeFolder(path, target)
    raise UserError(
        f"{target} holds neither a run (run.json), nor what a recipe's stages write ({', '.join(_STAGES)}), nor a matrix "
        "(table.json); name a run folder, a recipe or a matrix file"
    )


def _is_matrix(path: Path) -> bool:
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("kind") == "matrix"
