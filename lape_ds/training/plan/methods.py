"""The methods that are planned side by side, each prepared on the recipe's model without its weights.

Between recipe and candidates.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lape_ds.errors import UserError
from lape_ds.model.ffn import ffn_layers, is_mixture
from lape_ds.model.loading import load_skeleton, recipe_model
from lape_ds.model.meters import META_ATTENTION
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import NEURON_METHODS, Recipe, TrainSection
from lape_ds.runlog import progress
from lape_ds.subnetwork.methods import with_matched_lora
from lape_ds.training.plan.profile import KINDS, Checkpointing, Profile, profile

# Of all neurons, where a recipe has no set yet: the published ones of Maltese are 0.45 % of all parameters (arXiv 2510.13580).
NEURONS_SHARE = 0.005
# Name in the plan -> what it sets in the recipe. Random and top-k neurons cost what the subnetwork does.
_METHODS: dict[str, dict[str, str]] = {
    "subnetwork": {"method": "subnetwork", "engine": "compact"},
    "masked": {"method": "subnetwork", "engine": "masked"},
    "full": {"method": "full"},
    "ffn": {"method": "ffn"},
    "lora": {"method": "lora"},
    "ia3": {"method": "ia3"},
}
METHODS = tuple(_METHODS)
# By method, checkpointing, and whether under ZeRO-3.
Profiles = Mapping[tuple[str, Checkpointing, bool], Profile]


@dataclass(frozen=True)
class Subject:
    """What is planned.

    Attributes:
        recipe: With all its settings.
        skeleton: Its model on the meta device.
        neurons: int64 [n, 2].
        source: Where these are from, in words.
    """

    recipe: Recipe
    skeleton: PreTrainedModel
    neurons: Tensor
    source: str


def subject(recipe: Recipe, *, neurons_share: float | None = None) -> Subject:
    """Reads the model's configuration and the neuron set, if there is one.

    Args:
        recipe: The recipe.
        neurons_share: Of all neurons, instead of the recipe's set.

    Raises:
        UserError: No such model, a mixture of experts, or a set that does not fit it.
    """
    skeleton = skeleton_of(recipe)
    if is_mixture(skeleton):
        config: Any = skeleton.config
        raise UserError(
            f"model type {config.model_type} is a mixture of experts, which the plan does not know: what an expert keeps depends "
            "on its tokens; `lape-ds train` tells at its start what is kept for the weights"
        )
    path = recipe.train.neurons or recipe.identify_dir / "neurons.safetensors"
    if neurons_share is None and path.exists():
        return Subject(recipe, skeleton, _of_set(recipe, skeleton, path), f"{path}")
    share = NEURONS_SHARE if neurons_share is None else neurons_share
    neurons = _spread(skeleton, share)
    why = "as --neurons-share says" if neurons_share is not None else f"estimated: there is no {path} yet"
    return Subject(recipe, skeleton, neurons, f"{100 * share:.3g} % of every layer, {why}")


def skeleton_of(recipe: Recipe) -> PreTrainedModel:
    """The recipe's model on the meta device, by its config.json."""
    attention = recipe.model.attn_implementation
    return load_skeleton(
        recipe_model(recipe, config_only=True),
        dtype=getattr(torch, recipe.model.dtype),
        attn_implementation="eager" if attention == "eager" else META_ATTENTION,
    )


def _of_set(recipe: Recipe, skeleton: PreTrainedModel, path: Path) -> Tensor:
    found = NeuronSet.load(path)
    layers = ffn_layers(skeleton)
    if (found.num_layers, found.neurons_per_layer) != (len(layers), layers[0].num_neurons):
        raise UserError(
            f"{path} is of a model with {found.num_layers} layers of {found.neurons_per_layer} neurons, not of "
            f"{recipe.model.path}; run `lape-ds identify` with this recipe, or give --neurons-share"
        )
    return found.union(*recipe.trained_languages).long()


def _spread(skeleton: PreTrainedModel, share: float) -> Tensor:
    layers = ffn_layers(skeleton)
    count = max(1, round(share * layers[0].num_neurons))
    index = torch.arange(count) * layers[0].num_neurons // count
    return torch.stack([torch.arange(len(layers)).repeat_interleave(count), index.repeat(len(layers))], dim=1)


def name_of(train: TrainSection) -> str:
    """What the plan calls a recipe's method."""
    if train.method in NEURON_METHODS:
        return "subnetwork" if train.engine == "compact" else "masked"
    return train.method


def profiles(found: Subject, names: Iterable[str], *, largest: int) -> Profiles:
    """Every method with and without checkpointing and ZeRO-3, on the meta device, for micro-batches of up to `largest` blocks."""
    wanted = list(itertools.product(names, KINDS, (False, True)))
    return {
        (name, kind, partitioned): profile(
            copy.deepcopy(found.skeleton),
            section_of(found, name),
            _neurons(found, name),
            kind,
            largest=largest,
            partitioned=partitioned,
        )
        for name, kind, partitioned in progress(wanted, "Planning", unit="profiles")
    }


def section_of(found: Subject, name: str) -> TrainSection:
    """The recipe's training with another method."""
    train = found.recipe.train.model_copy(update=_METHODS[name])
    if train.method == "lora" and train.lora.r == "match":
        return with_matched_lora(train, found.skeleton, found.neurons)
    return train


def _neurons(found: Subject, name: str) -> Tensor | None:
    return found.neurons if _METHODS[name]["method"] == "subnetwork" else None
