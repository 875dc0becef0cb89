"""`lape-ds plan`: what every way to train a recipe would cost on some machines.

Needs no GPU and no weights: the model's config.json, the recipe, and its neuron set if there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lape_ds.errors import UserError
from lape_ds.recipe import Recipe, rewrite_recipe
from lape_ds.training.plan.candidates import Candidate, Costing, Setting
from lape_ds.training.plan.cluster import Cluster, gpus_here, parse_cluster
from lape_ds.training.plan.methods import METHODS, Profiles, Subject, name_of, profiles, subject
from lape_ds.training.plan.report import Plan, as_json, markdown_file, show
from lape_ds.writing import write_json, write_text


def plan_command(
    recipe: Recipe,
    recipe_path: str,
    *,
    gpus: Sequence[str],
    neurons_share: float | None,
    everything: bool,
    apply: bool,
    json_file: Path | None,
    markdown: Path | None,
) -> None:
    """Prints the plan, and writes what is asked for.

    Args:
        recipe: The recipe.
        recipe_path: Its file, for `apply`.
        gpus: As `8x40GB`, once for each cluster; empty: the GPUs here.
        neurons_share: Of all neurons, instead of the recipe's set.
        everything: Shows every candidate, not only the best of each method.
        apply: Writes the best for the recipe's method into its file; one cluster only.
        json_file: Gets everything.
        markdown: Gets the tables.

    Raises:
        UserError: No GPU is here or named, nothing fits for the recipe's method, or the recipe cannot be planned or written.
    """
    clusters = _clusters(gpus)
    if apply and len(clusters) > 1:
        raise UserError(f"--apply writes the plan of one cluster; {len(clusters)} are given with --gpus")
    plans = make_plans(subject(recipe, neurons_share=neurons_share), clusters, METHODS)
    for plan in plans:
        show(plan, everything=everything)
    command = " ".join(["lape-ds", *sys.argv[1:]])
    if json_file is not None:
        write_json(json_file, as_json(plans, command=command))
    if markdown is not None:
        write_text(markdown, markdown_file(plans, command=command, everything=everything))
    best = next((plan.best for plan in plans if plan.best is not None), None)
    if best is None:
        raise UserError(_nothing_fits(plans))
    if apply:  # the only plan's
        keep_setting(best.setting, recipe_path)


def _nothing_fits(plans: Sequence[Plan]) -> str:
    own = name_of(plans[0].recipe.train)
    where = " or ".join(str(plan.cluster) for plan in plans)
    others = [method for method in METHODS if any(plan.ranked(method) for plan in plans)]
    instead = (
        f"; of the other methods {', '.join(others)} would fit" if others else ", nor for another method"
    )
    return f"by the plan nothing fits for {own} on {where}{instead}; take more or larger GPUs, or a smaller train.block_length"


def _clusters(gpus: Sequence[str]) -> list[Cluster]:
    if gpus:
        return [parse_cluster(text) for text in gpus]
    here = gpus_here()
    if here is None:
        raise UserError("there is no GPU here: say which ones to plan for, e.g. --gpus 8x40GB")
    return [here]


def make_plans(found: Subject, clusters: Sequence[Cluster], methods: Sequence[str]) -> list[Plan]:
    """Every candidate of some methods on some clusters."""
    costings = [Costing(found.recipe, cluster) for cluster in clusters]
    wanted = [costing.settings() for costing in costings]  # refuses before anything is counted
    largest = max(setting.micro_batch_size for settings in wanted for setting in settings)
    known = profiles(found, methods, largest=largest)
    return [
        Plan(found, costing.cluster, _candidates(costing, settings, methods, known), _tokens(costing))
        for costing, settings in zip(costings, wanted, strict=True)
    ]


def _candidates(
    costing: Costing,
    settings: Sequence[Setting],
    methods: Sequence[str],
    known: Profiles,
) -> list[Candidate]:
    return [
        costing.candidate(method, known[method, setting.checkpointing, setting.zero_stage == 3], setting)
        for method in methods
        for setting in settings
    ]


def _tokens(costing: Costing) -> int | None:
    """Tokens of the whole training; None where the recipe takes all its text."""
    train = costing.recipe.train
    by_steps = (
        None if train.max_steps is None else train.max_steps * costing.global_batch_size * train.block_length
    )
    if train.tokens == "all":
        return by_steps
    by_text = round(
        train.tokens * len(costing.recipe.trained_languages) * train.epochs / (1 - train.replay.share)
    )
    return by_text if by_steps is None else min(by_text, by_steps)


def keep_setting(setting: Setting, recipe_path: str) -> None:
    """Writes settings into the recipe's file and prints the difference."""
    difference = rewrite_recipe(recipe_path, setting.keys())
    print(difference or f"{recipe_path} says all that already", end="" if difference else "\n")
