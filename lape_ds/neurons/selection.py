"""From the counts of all languages to the neuron set, by the recipe's method.

After counting, before whatever takes a neuron set; needs no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.neurons.counts import Counts, CountSettings
from lape_ds.neurons.families import families
from lape_ds.neurons.lape import most_active, select
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.neurons.probabilities import Probabilities
from lape_ds.recipe import IdentifySection, Recipe


def select_neurons(section: IdentifySection, counts: Iterable[Counts]) -> NeuronSet:
    """Selects every language's neurons.

    Args:
        section: Which method, and its knobs.
        counts: In the order of the languages. They are looked at one after the other, once: a generator that loads their
            files needs the memory of one and a sixteenth of all.

    Raises:
        UserError: No counts, unlike ones, a language without tokens, or counts without the sums that `mean_activation` needs.
    """
    settings: list[CountSettings] = []
    tokens: list[int] = []
    active: list[Tensor] = []  # of the methods that count
    indices: list[Tensor] = []  # of the one that does not
    shape, num_experts = torch.Size((0, 0)), 1
    for counts_k in counts:
        settings.append(counts_k.settings)
        check_comparable(settings[0], settings[-1])
        tokens.append(counts_k.num_tokens())
        shape = counts_k.active.shape[1:]
        num_experts = 1 if counts_k.expert_tokens is None else counts_k.expert_tokens.shape[2]
        if section.method == "mean_activation":
            indices.append(most_active(counts_k.mean_activations(), top_rate=section.top_rate))
        else:
            active.append(counts_k.total_active().flatten())
    if not settings:
        raise UserError("no counts to select neurons from; count some with `lape-ds identify`")
    codes = [settings_k.language for settings_k in settings]
    if active:
        table = Probabilities(tuple(active), tuple(tokens), shape[0])
        indices = select_from_table(section, table, codes)
    return NeuronSet(
        indices=dict(zip(codes, indices, strict=True)),
        num_layers=shape[0],
        neurons_per_layer=shape[1],
        experts_per_layer=num_experts,
        model_id=settings[0].model_id,
        model_fingerprint=settings[0].model_fingerprint,
        method=section.method,
        knobs={
            **_knobs(section, codes),
            "context_length": settings[0].context_length,
            "dtype": settings[0].dtype,
            "tokens": dict(zip(codes, tokens, strict=True)),
        },
    )


def select_from_folder(recipe: Recipe, folder: Path) -> NeuronSet:
    """Selects the neurons of a recipe's languages from the counts in a folder, e.g. one that was merged.

    Raises:
        UserError: As `select_neurons`, or a language has no counts there.
    """
    return select_neurons(recipe.identify, (Counts.load(path) for path in counts_files(recipe, folder)))


def counts_files(recipe: Recipe, folder: Path) -> list[Path]:
    """The files of a recipe's languages in a folder of counts, in order.

    Raises:
        UserError: A language has none.
    """
    paths = [folder / f"{code}.safetensors" for code in recipe.languages.identify]
    missing = [path.stem for path in paths if not path.is_file()]
    if missing:
        raise UserError(
            f"{folder} has no counts of {', '.join(missing)} (languages.identify); count them, or name fewer languages"
        )
    return paths


def select_from_table(section: IdentifySection, table: Probabilities, codes: Sequence[str]) -> list[Tensor]:
    """Selects by a method that needs no more than activation probabilities: `lape`, `family_lape` or `probability`.

    Args:
        section: Which method, and its knobs.
        table: Of all languages.
        codes: The languages in the table's order.

    Returns:
        Per language int32 `[n, 2]` of (layer, index), sorted.
    """
    if section.method == "probability":
        shape = (table.num_layers, table.neurons_per_layer)
        return [most_active(probs_N.view(shape), top_rate=section.top_rate) for probs_N in table.languages()]
    return select(
        table,
        top_rate=section.top_rate,
        filter_rate=section.filter_rate,
        activation_bar_ratio=section.activation_bar_ratio,
        families=families(codes, section.families) if section.method == "family_lape" else None,
    )


def _knobs(section: IdentifySection, codes: Sequence[str]) -> dict[str, Any]:
    knobs: dict[str, Any] = {"top_rate": section.top_rate}
    if section.method in ("lape", "family_lape"):
        knobs |= {"filter_rate": section.filter_rate, "activation_bar_ratio": section.activation_bar_ratio}
    if section.method == "family_lape":
        knobs["families"] = dict(zip(codes, families(codes, section.families), strict=True))
    return knobs


def check_comparable(first: CountSettings, other: CountSettings) -> None:
    """Makes sure that counts of two languages may be compared: by one model, in the same way.

    Raises:
        UserError: They may not; names the setting and both values.
    """
    theirs = asdict(other)
    for name, ours in asdict(first).items():
        if name not in ("language", "model_id") and ours != theirs[name]:
            raise UserError(
                f"counts of {first.language} and {other.language} differ in {name} ({ours} and {theirs[name]}), so their "
                f"languages cannot be compared; count both with the same {name}"
            )
