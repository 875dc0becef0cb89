"""From counts to the set, by every method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from lape_ds.errors import UserError
from lape_ds.neurons.counts import ACTIVATION_UNIT, CountedBlocks, Counts, CountSettings
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.neurons.selection import select_neurons
from lape_ds.recipe import IdentifySection
from tests.oracles.selection import Knobs, naive_most_active, naive_select

CODES = ["mkd_Cyrl", "slk_Latn", "mlt_Latn", "kat_Geor"]
KNOBS: Knobs = {"top_rate": 0.2, "filter_rate": 0.75, "activation_bar_ratio": 0.75}


def make_counts(code: str, *, seed: int, sums: bool = True) -> Counts:
    """Random ones of 3 layers x 20 neurons, as many tokens as the seed likes; some means of activations are negative."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, 90, (16,), generator=generator)
    share = torch.rand(16, 3, 20, generator=generator) ** 3
    active = (share * tokens[:, None, None]).int()
    activation_sums = torch.randint(-(2**24), 2**28, (3, 20), generator=generator) if sums else None
    settings = CountSettings(code, "tiny", "f" * 64, 12, "float32")
    return Counts(active, tokens, settings, (CountedBlocks("c", 0, 1, 9),), None, activation_sums)


def all_counts() -> list[Counts]:
    return [make_counts(code, seed=seed) for seed, code in enumerate(CODES)]


def chosen(method: str, **settings: Any) -> NeuronSet:
    knobs = dict(KNOBS) if "lape" in method else {"top_rate": KNOBS["top_rate"]}
    section = IdentifySection(method=method, **knobs, **settings)  # pyright: ignore[reportArgumentType]
    return select_neurons(section, (counts for counts in all_counts()))


def pairs(found: NeuronSet) -> list[list[tuple[int, int]]]:
    return [[(layer, index) for layer, index in found.neurons(code).tolist()] for code in CODES]


def test_methods_equal_their_oracles() -> None:
    probs = torch.stack([counts.probabilities() for counts in all_counts()], -1)
    means = torch.stack(
        [
            counts.activation_sums.double() / ACTIVATION_UNIT / int(counts.tokens.sum())
            for counts in all_counts()
            if counts.activation_sums is not None
        ],
        -1,
    )
    expected = {
        "lape": naive_select(probs, **KNOBS),
        "family_lape": naive_select(probs, **KNOBS, families=["s", "s", "m", "g"]),
        "probability": naive_most_active(probs, top_rate=0.2),
        "mean_activation": naive_most_active(means, top_rate=0.2),
    }
    found = {method: chosen(method) for method in expected}
    assert {method: pairs(neurons) for method, neurons in found.items()} == expected
    assert len({str(neurons) for neurons in expected.values()}) == 4  # the case tells them apart
    assert all(neurons.method == method for method, neurons in found.items())
    assert found["family_lape"].knobs["families"]["slk_Latn"] == "Slavic"
    assert set(found["probability"].knobs) == {"top_rate", "context_length", "dtype", "tokens"}


def test_the_recipes_families_go_before_the_table() -> None:
    probs = torch.stack([counts.probabilities() for counts in all_counts()], -1)
    found = chosen("family_lape", families={"mt": "Slavic", "ka": "Slavic"})
    assert pairs(found) == naive_select(probs, **KNOBS, families=["s", "s", "s", "s"])


def test_looks_at_one_language_after_the_other() -> None:
    """What is not needed any more is let go, before the next is loaded."""
    alive = 0

    class Tracked(Counts):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def load() -> Iterator[Counts]:
        nonlocal alive
        for seed, code in enumerate(CODES):
            assert alive <= 1
            alive += 1
            yield Tracked(**vars(make_counts(code, seed=seed)))

    found = select_neurons(IdentifySection(**KNOBS), load())  # pyright: ignore[reportArgumentType]
    assert pairs(found) == pairs(chosen("lape"))


def test_unlike_counts_are_not_compared() -> None:
    first, second, *_ = all_counts()
    other = replace(second, settings=replace(second.settings, context_length=64))
    with pytest.raises(UserError, match=r"mkd_Cyrl and slk_Latn differ in context_length \(12 and 64\)"):
        select_neurons(IdentifySection(), [first, other])
    with pytest.raises(UserError, match="no counts to select"):
        select_neurons(IdentifySection(), [])


def test_mean_activation_needs_sums() -> None:
    with pytest.raises(UserError, match="mlt_Latn hold no sums of activations"):
        select_neurons(
            IdentifySection(method="mean_activation"), [make_counts("mlt_Latn", seed=0, sums=False)]
        )


def test_planted_rare_and_strong_neurons() -> None:
    """Of 60 neurons one fires faintly on many tokens, one hard on few: probability finds the first, the mean the second."""
    planted = []
    for counts in all_counts():
        active, sums = torch.zeros_like(counts.active), torch.zeros(3, 20, dtype=torch.int64)
        active[:, 1, 4], sums[1, 4] = counts.tokens.int(), ACTIVATION_UNIT // 1000
        active[0, 2, 7], sums[2, 7] = 1, 50 * ACTIVATION_UNIT
        planted.append(replace(counts, active=active, activation_sums=sums))
    for method, neuron in (("probability", [1, 4]), ("mean_activation", [2, 7])):
        section = IdentifySection(method=method, top_rate=1 / 60)  # pyright: ignore[reportArgumentType]
        found = select_neurons(section, planted)
        assert [found.neurons(code).tolist() for code in CODES] == [[neuron]] * 4


def test_experts_are_told() -> None:
    experts = torch.full((16, 3, 4), 40)
    mixtures = [
        replace(counts, active=counts.active.clamp(max=40), expert_tokens=experts) for counts in all_counts()
    ]
    found = select_neurons(IdentifySection(), mixtures)
    assert (found.neurons_per_layer, found.experts_per_layer) == (20, 4)
