"""Arguments that several commands of `lape-ds` take, and how a recipe among them is loaded.

Below the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lape_ds.recipe import Recipe

RecipeArgument = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A recipe, or a run folder with recipe.yaml.", show_default=False),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides, e.g. train.tokens=1000000.", show_default=False
    ),
]


RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder or its recipe.", show_default=False)
]


def listed(text: str | None) -> list[str]:
    """The words of a comma-separated option."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def load(path: str, overrides: list[str] | None, *, for_counts_alone: bool = False) -> Recipe:
    """A command's recipe, whose environment variables are this process's from now on."""
    from lape_ds.recipe import load_recipe
    from lape_ds.recipe.environment import enter_environment

    recipe = load_recipe(path, overrides or [], for_counts_alone=for_counts_alone)
    enter_environment(recipe.env)
    return recipe


def run_folder(run: str, overrides: list[str] | None) -> Path:
    """The folder of the run that is named: itself, or by its recipe."""
    is_run = (Path(run) / "recipe.yaml").is_file() and not overrides
    return Path(run) if is_run else load(run, overrides).run_dir
