"""`lape-ds plan` and `lape-ds tune`: before a training is queued.

Beside cli.py, which has the other commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lape_ds.cli_arguments import OverridesArgument, RecipeArgument

ApplyOption = Annotated[
    bool, typer.Option("--apply", help="Write the best into the recipe's file; the rest of it stays.")
]


def add_plan_commands(app: typer.Typer) -> None:
    """Adds both to the app."""
    app.command()(plan)
    app.command()(tune)


def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    gpus: Annotated[
        list[str] | None,
        typer.Option(
            metavar="8x40GB",
            help="Also 2x8x80GB (nodes first); several times for several; the GPUs here if not given.",
        ),
    ] = None,
    neurons_share: Annotated[
        float | None,
        typer.Option(
            min=0.0001, max=1, help="Plan for this share of all neurons instead of the recipe's set."
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every candidate, not only the best of each method.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every candidate.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables.")] = None,
    apply: ApplyOption = False,
) -> None:
    """Tell what every method, ZeRO stage, offload and micro-batch needs of a GPU, and which is best; needs no GPU.

    Example: lape-ds plan recipes/mistral-nemo-12b.yaml --gpus 8x40GB
    """
    from lape_ds.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from lape_ds.training.plan.command import plan_command

    plan_command(
        loaded,
        recipe,
        gpus=gpus or [],
        neurons_share=neurons_share,
        everything=everything,
        apply=apply,
        json_file=json_file,
        markdown=markdown,
    )


def tune(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    candidates: Annotated[int, typer.Option(min=1, help="How many of the plan's best are run.")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="Timed ones; two more go before them.")] = 8,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="The record.")] = None,
    apply: ApplyOption = False,
) -> None:
    """Run the plan's few best candidates for some steps on this machine and keep the fastest that fits.

    Example: lape-ds tune recipes/llama-3.1-8b.yaml --candidates 6
    """
    from lape_ds.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    from lape_ds.training.tune import tune_command

    tune_command(
        loaded, recipe, overrides or [], candidates=candidates, steps=steps, apply=apply, json_file=json_file
    )
