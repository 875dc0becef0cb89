"""Arguments that several commands of `lape-ds` take.

Below the commands.
"""

from __future__ import annotations

from typing import Annotated

import typer

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


def listed(text: str | None) -> list[str]:
    """The words of a comma-separated option."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
