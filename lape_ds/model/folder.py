"""Which folder of this machine a model's path names, and what is wrong with it: all that can be told without torch.

Before loading.py, which asks the hub for what is not here.
"""

from __future__ import annotations

import re
from pathlib import Path

from lape_ds.errors import UserError
from lape_ds.recipe import Recipe


def is_hub_id(name: str) -> bool:
    """Whether a model's or data set's name is one of the hub, not a folder of this machine or of another."""
    return bool(re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name)) and not Path(name).exists()


def folder_here(path: str) -> Path | None:
    """A model's folder on this machine; None where its path can only be a hub id.

    Raises:
        UserError: There is no model in it.
    """
    folder = Path(path).expanduser()
    if not folder.exists() and not path.startswith((".", "/", "~")):
        return None
    if not (folder / "config.json").is_file():
        raise UserError(
            f"model.path={path}: no config.json there; give the folder of a Hugging Face model, or a hub id"
        )
    return folder


def check_made(recipe: Recipe) -> None:
    """Makes sure that a model which the recipe makes itself has been made.

    Raises:
        UserError: It has not.
    """
    if recipe.model.create is not None and not (Path(recipe.model.path) / "config.json").is_file():
        raise UserError(
            f"model.path={recipe.model.path} is not made yet (relative to {Path.cwd()}): run `lape-ds pretrain` with this "
            "recipe first"
        )
