"""A recipe's sweep, run by run: each is an ordinary training recipe.

After loading; the ranks train these recipes, the analysis reads their folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lape_ds.errors import UserError
from lape_ds.recipe.loading import validate
from lape_ds.recipe.sections import Recipe
from lape_ds.recipe.source_text import SourceText
from lape_ds.recipe.sweep_section import SweepSection, SweepVariant, rate_label
from lape_ds.recipe.train_section import NEURON_METHODS, LoRASection


@dataclass(frozen=True)
class SweepRun:
    """One training of a sweep."""

    variant: str
    learning_rate: float
    seed: int
    recipe: Recipe

    @property
    def run_dir(self) -> Path:
        """Its folder, among those of other trainings."""
        return self.recipe.run_dir

    @property
    def label(self) -> str:
        """E.g. `full lr 1e-05 seed 0`."""
        return f"{self.variant} lr {rate_label(self.learning_rate)} seed {self.seed}"


def sweep_runs(recipe: Recipe) -> list[SweepRun]:
    """All runs of a sweep: every variant at every rate with its first seed, then with its second.

    So what is done early is a picture of all methods, if a rough one.

    Raises:
        UserError: What a variant sets does not fit the recipe.
    """
    if recipe.train.wandb is not None:
        raise UserError(
            "train.wandb: one process trains many runs of a sweep, which W&B would take for one; set train.wandb=null"
        )
    sweep = recipe.sweep or SweepSection()
    data = recipe.model_dump(mode="json")
    seeds = [sweep.seeds_of(variant) for variant in sweep.variants]
    return [
        SweepRun(
            variant.name,
            rate,
            seeds[number][place],
            _run_recipe(data, sweep, number, rate, seeds[number][place]),
        )
        for place in range(max(map(len, seeds)))
        for number, variant in enumerate(sweep.variants)
        if place < len(seeds[number])
        for rate in variant.learning_rates
    ]


def _run_recipe(data: Mapping[str, Any], sweep: SweepSection, number: int, rate: float, seed: int) -> Recipe:
    variant = sweep.variants[number]
    place = f"sweep.variants.{number} ({variant.name})"
    content = SourceText(_copy(data), {(): place})
    # What the recipe and the sweep say of other methods is no part of this run.
    settings = {**sweep.set, **_not_of(variant.method), **variant.set, **_of_run(variant, rate, seed)}
    if sweep.num_ranks is not None:
        settings["launch.num_ranks"] = sweep.num_ranks
    for key, value in settings.items():
        content.put(key.split("."), value, origin=f"{place}: {key}")
    derived = validate(content)
    if derived.train.heldout.every_steps is None:
        raise UserError(
            "train.heldout.every_steps: null measures nothing, and a sweep sets side by side what was measured; give a number"
        )
    if derived.train.heldout.languages:
        return derived
    # Forgetting is measured: on the languages that are named, else on all that are not trained.
    others = [code for code in derived.languages.identify if code not in derived.trained_languages]
    content.put(("train", "heldout", "languages"), others, origin=place)
    return validate(content)


def _of_run(variant: SweepVariant, rate: float, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "sweep": None,
        "train.method": variant.method,
        "train.optimizer.learning_rate": rate,
        "train.random_seed": seed if variant.method == "random" else 0,
        "train.run_name": f"sweep/{variant.name}/lr-{rate_label(rate)}/seed-{seed}",
        "train.resume": "auto",  # a sweep that is started again goes on
    }


def _not_of(method: str) -> dict[str, Any]:
    """Defaults for what only other methods have."""
    idle = {} if method in NEURON_METHODS else {"train.engine": "compact"}
    return idle if method == "lora" else idle | {"train.lora": LoRASection().model_dump(mode="json")}


def _copy(data: Any) -> Any:
    """Mappings anew, the rest as it is: only mappings are written into."""
    return {key: _copy(value) for key, value in data.items()} if isinstance(data, Mapping) else data
