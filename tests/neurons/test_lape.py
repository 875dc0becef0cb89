"""LAPE against a naive float64 double loop, and against the published algorithm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.neurons.lape import lape_entropy, most_active, select
from lape_ds.neurons.probabilities import Probabilities, percentiles
from tests.oracles.selection import (
    Knobs,
    naive_entropy,
    naive_most_active,
    naive_select,
    whole_tensor_entropy,
    whole_tensor_select,
)

PUBLISHED: Knobs = {"top_rate": 0.05, "filter_rate": 0.95, "activation_bar_ratio": 0.95}


def published_select(
    probs_LIK: Tensor, *, top_rate: float, filter_rate: float, activation_bar_ratio: float
) -> list[list[list[int]]]:
    """The public algorithm of both papers, from its description: float32, `topk`, `torch.where`, split by
    `bincount`.

    Returns:
        `[language][layer]` lists of indices; as many languages as `bincount` sees.
    """
    probs = probs_LIK.float()
    num_layers, num_neurons, _ = probs.shape
    shares = probs / probs.sum(-1, keepdim=True)
    shares[shares.isnan()] = 0
    entropy = -(shares * torch.where(shares > 0, shares.log(), 0)).sum(-1)
    flat = probs.flatten()
    filter_bar = flat.kthvalue(round(len(flat) * filter_rate)).values
    entropy[(probs > filter_bar).sum(-1) == 0] = torch.inf
    lowest = entropy.flatten().topk(round(entropy.numel() * top_rate), largest=False).indices
    rows, columns = lowest // num_neurons, lowest % num_neurons
    activation_bar = flat.kthvalue(round(len(flat) * activation_bar_ratio)).values
    languages, members = torch.where(activation_bar < probs[rows, columns].T)
    sets = []
    for chosen in members.split(torch.bincount(languages).tolist()):
        pairs = sorted((int(rows[i]), int(columns[i])) for i in chosen)
        sets.append([[index for layer, index in pairs if layer == wanted] for wanted in range(num_layers)])
    return sets


def pairs(selected: list[Tensor]) -> list[list[tuple[int, int]]]:
    return [[(layer, index) for layer, index in neurons.tolist()] for neurons in selected]


def layered(selected: list[Tensor], num_layers: int) -> list[list[list[int]]]:
    return [
        [[i for row, i in neurons.tolist() if row == layer] for layer in range(num_layers)]
        for neurons in selected
    ]


def random_probs(
    num_layers: int, num_neurons: int, num_languages: int, *, tokens: int = 997, seed: int = 0
) -> Tensor:
    """Skewed counts / tokens: few neurons are often active; small `tokens` make ties and zeros."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_layers, num_neurons, num_languages, generator=generator, dtype=torch.float64)
    return (uniform**4 * tokens).floor() / tokens


KNOBS: list[Knobs] = [
    PUBLISHED,
    {"top_rate": 0.25, "filter_rate": 0.75, "activation_bar_ratio": 0.75},
    {"top_rate": 0.01, "filter_rate": 0.9, "activation_bar_ratio": 0.99},
    {"top_rate": 1.0, "filter_rate": 0.5, "activation_bar_ratio": 0.25},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize("tokens", [10**6, 97, 7], ids="{} tokens".format)
@pytest.mark.parametrize("seed", range(3))
def test_equals_naive_loop(knobs: Knobs, tokens: int, seed: int) -> None:
    """7 tokens leave eight possible values: nearly everything is tied, and many neurons are never active."""
    probs = random_probs(4, 60, 5, tokens=tokens, seed=seed)
    torch.testing.assert_close(lape_entropy(probs), torch.tensor(naive_entropy(probs), dtype=torch.float64))
    assert pairs(select(probs, **knobs)) == naive_select(probs, **knobs)


def test_entropy_by_hand() -> None:
    """One language: 0. Two alike: ln 2. Quarter and three quarters: ln 4 - 3/4 ln 3. Never active: +inf."""
    probs = torch.tensor([[[0.2, 0.0], [0.3, 0.3], [0.1, 0.3], [0.0, 0.0]]], dtype=torch.float64)
    expected = torch.tensor(
        [[0.0, math.log(2), math.log(4) - 0.75 * math.log(3), math.inf]], dtype=torch.float64
    )
    torch.testing.assert_close(lape_entropy(probs), expected)


def test_never_active_neuron_is_never_selected() -> None:
    """Its shares would be 0/0; with the lowest bars and room for all, it still stays out."""
    probs = random_probs(2, 30, 3)
    probs[0, :10] = 0
    probs[1, 4] = 0
    selected = select(probs, top_rate=1.0, filter_rate=0.01, activation_bar_ratio=0.01)
    taken = {neuron for neurons in pairs(selected) for neuron in neurons}
    assert taken
    assert not taken & {(1, 4), *((0, index) for index in range(10))}


def test_ties_go_to_the_lower_index() -> None:
    """40 equal one-language neurons for 6 places (15 % of 40); the median of all values is 0."""
    probs = torch.zeros(2, 20, 2, dtype=torch.float64)
    probs[..., 0] = 0.5
    selected = select(probs, top_rate=0.15, filter_rate=0.5, activation_bar_ratio=0.5)
    assert pairs(selected) == [[(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5)], []]


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_equal_probabilities_select_nothing(value: float) -> None:
    """Nothing exceeds a percentile of equal values."""
    selected = select(torch.full((2, 10, 3), value, dtype=torch.float64), **PUBLISHED)
    assert [list(neurons.shape) for neurons in selected] == [[0, 2]] * 3


def test_no_places_select_nothing() -> None:
    """round(20 × 0.02) = 0 neurons."""
    assert pairs(
        select(random_probs(2, 10, 2), top_rate=0.02, filter_rate=0.5, activation_bar_ratio=0.5)
    ) == [[], []]


def test_highest_bars_select_nothing() -> None:
    """The 100th percentile is the largest value, which nothing exceeds."""
    assert pairs(select(random_probs(2, 10, 2), top_rate=1.0, filter_rate=1.0, activation_bar_ratio=0.5)) == [
        [],
        [],
    ]
    assert pairs(select(random_probs(2, 10, 2), top_rate=1.0, filter_rate=0.5, activation_bar_ratio=1.0)) == [
        [],
        [],
    ]


@pytest.mark.parametrize("bad", [math.nan, -0.1, 1.1, math.inf])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    probs = random_probs(2, 10, 2)
    probs[1, 3, 0] = bad
    with pytest.raises(UserError, match=r"must lie in \[0, 1\]"):
        select(probs, **PUBLISHED)


def test_output_is_sorted_int32() -> None:
    for neurons in select(random_probs(4, 500, 5), **PUBLISHED):
        assert neurons.dtype == torch.int32
        assert pairs([neurons])[0] == sorted(set(pairs([neurons])[0]))


@pytest.mark.parametrize("knobs", KNOBS[:2], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_equals_published_algorithm(knobs: Knobs, seed: int) -> None:
    """Counts without ties, every language with neurons: the very same sets."""
    probs = random_probs(4, 500, 12, tokens=10**6, seed=seed)
    assert layered(select(probs, **knobs), 4) == published_select(probs, **knobs)


def test_language_without_neurons_keeps_its_place() -> None:
    """`bincount` sees no trailing language without neurons, so that the published sets are one too few."""
    probs = random_probs(4, 500, 4, tokens=10**6)
    probs[..., 3] *= 0.01  # never above the bar
    ours, published = layered(select(probs, **PUBLISHED), 4), published_select(probs, **PUBLISHED)
    assert len(published) == 3
    assert ours == [*published, [[], [], [], []]]


def test_filtered_neurons_are_not_taken_to_fill_up() -> None:
    """One neuron passes the filter and 10 places are free: the published `topk` goes on with dropped ones
    (+inf).

    With an activation bar below the filter's they then count as language neurons.
    """
    probs = torch.full((1, 20, 2), 0.1, dtype=torch.float64)
    probs[0, 7, 1] = 0.9
    probs[0, :5] = 0.01
    knobs: Knobs = {"top_rate": 0.5, "filter_rate": 0.95, "activation_bar_ratio": 0.2}
    assert pairs(select(probs, **knobs)) == [[(0, 7)], [(0, 7)]]
    assert sum(len(layer) for language in published_select(probs, **knobs) for layer in language) > 2


def test_more_values_than_torch_quantile_takes() -> None:
    """16.8 M probabilities, each a different one: percentiles are known, and so is who exceeds them.

    torch.quantile stops at 16 M. Value v of the flattened tensor is v / n, so that the last 5 % of the
    neurons pass.
    """
    shape = (4, 1_050_000, 4)
    n = math.prod(shape)
    probs = (torch.arange(n, dtype=torch.float64) / n).reshape(shape)
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(probs.flatten(), 0.95)
    assert percentiles(probs, 0.95, 0.5) == [(round(n * 0.95) - 1) / n, (round(n * 0.5) - 1) / n]
    selected = select(probs, **PUBLISHED)
    # 5 % of 4.2 M neurons are 210,000: exactly those whose largest value is in the top 5 % (n/4 = 4.2 M is
    # divisible by 20).
    first = n // 4 - 210_000
    for neurons in selected:
        assert torch.equal(
            neurons[:, 0].long() * 1_050_000 + neurons[:, 1].long(), torch.arange(first, n // 4)
        )


def test_200_languages() -> None:
    probs = random_probs(3, 40, 200, tokens=10**5)
    assert pairs(select(probs, **PUBLISHED)) == naive_select(probs, **PUBLISHED)
    assert len(select(probs, **PUBLISHED)) == 200


@pytest.mark.parametrize("knobs", KNOBS[:2], ids=str)
@pytest.mark.parametrize("num_languages", [2, 12, 37, 300])
def test_same_to_the_bit_as_in_one_tensor(knobs: Knobs, num_languages: int) -> None:
    """Pieces change neither a sum's order nor who is at the cut; more neurons than one piece holds."""
    probs = random_probs(3, 100_000 // num_languages, num_languages, tokens=10**5, seed=num_languages)
    assert torch.equal(lape_entropy(probs), whole_tensor_entropy(probs))
    expected = whole_tensor_select(probs, **knobs)
    for found, neurons in zip(select(probs, **knobs), expected, strict=True):
        assert torch.equal(found, neurons)


def test_counts_and_their_quotients_select_the_same() -> None:
    """Each language with tokens of its own."""
    generator = torch.Generator().manual_seed(0)
    tokens = (997, 10**4, 31)
    active = tuple((torch.rand(4 * 60, generator=generator) ** 4 * number).int() for number in tokens)
    probs = torch.stack([a.double() / number for a, number in zip(active, tokens, strict=True)], -1)
    counted = select(Probabilities(active, tokens, 4), **PUBLISHED)
    assert pairs(counted) == naive_select(probs.unflatten(0, (4, 60)), **PUBLISHED)


FAMILIES = ["a", "b", "a", "c", "a", "b", "d"]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize("tokens", [10**6, 7], ids="{} tokens".format)
def test_families_equal_naive_loop(knobs: Knobs, tokens: int) -> None:
    probs = random_probs(4, 60, 7, tokens=tokens)
    assert pairs(select(probs, families=FAMILIES, **knobs)) == naive_select(probs, families=FAMILIES, **knobs)


def test_every_language_its_own_family_is_the_published_selection() -> None:
    probs = random_probs(4, 200, 6)
    by_family = select(probs, families=list("uvwxyz"), **PUBLISHED)
    assert pairs(by_family) == pairs(select(probs, **PUBLISHED))


def test_planted_family_neurons_are_found_by_families_alone() -> None:
    """12 related languages and 8 single ones; 5 neurons are for a single language, 5 for one of the family, 5 for all of it.

    Places for 15. By language, what twelve share has an entropy of ln 12, more than the noise neurons of three languages have,
    which take its places; by family all three kinds are specific.
    """
    num_languages, family = 20, ["slavic"] * 12 + [f"single {k}" for k in range(8)]
    probs = torch.full((2, 150, num_languages), 0.01, dtype=torch.float64)
    probs[0, :5, 15] = 0.9  # a single language's
    probs[0, 5:10, 3] = 0.9  # of the family, one language's
    probs[1, :5, :12] = 0.9  # the whole family's
    for index in range(10, 40):  # noise: three languages of three families
        probs[0, index, [index % 12, 12 + index % 4, 16 + index % 4]] = 0.8
    knobs: Knobs = {"top_rate": 0.05, "filter_rate": 0.95, "activation_bar_ratio": 0.95}
    expected: list[list[tuple[int, int]]] = [[(1, index) for index in range(5)] for _ in range(12)]
    expected += [[] for _ in range(8)]
    expected[15] = [(0, index) for index in range(5)]
    expected[3] = [(0, index) for index in range(5, 10)] + expected[3]
    assert pairs(select(probs, families=family, **knobs)) == expected
    by_language = pairs(select(probs, **knobs))
    assert set(expected[15]) < set(by_language[15])
    assert not any(layer == 1 for neurons in by_language for layer, _ in neurons)


@pytest.mark.parametrize("top_rate", [0.002, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [10**6, 7], ids="{} tokens".format)
def test_most_active_equals_naive_loop(top_rate: float, tokens: int) -> None:
    """7 tokens: ties at the cut, and neurons that are never active."""
    probs = random_probs(4, 60, 5, tokens=tokens)
    found = [most_active(probs_LI, top_rate=top_rate) for probs_LI in probs.unbind(-1)]
    assert pairs(found) == naive_most_active(probs, top_rate=top_rate)


def test_planted_active_neurons_are_found() -> None:
    """Two neurons that are active in both languages, and one in each: LAPE's choice is the latter, most active are all."""
    probs = torch.full((2, 20, 2), 0.01, dtype=torch.float64)
    probs[0, [3, 4]] = 0.9
    probs[1, 5, 0] = probs[1, 6, 1] = 0.8
    assert pairs([most_active(probs_LI, top_rate=0.075) for probs_LI in probs.unbind(-1)]) == [
        [(0, 3), (0, 4), (1, 5)],
        [(0, 3), (0, 4), (1, 6)],
    ]
    assert pairs(select(probs, top_rate=0.05, filter_rate=0.9, activation_bar_ratio=0.9)) == [
        [(1, 5)],
        [(1, 6)],
    ]
