"""LAPE against a naive float64 double loop, and against the published algorithm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.neurons.lape import lape_entropy, percentiles, select

PUBLISHED = {"top_rate": 0.05, "filter_rate": 0.95, "activation_bar_ratio": 0.95}


def naive_entropy(probs_LIK: Tensor) -> list[list[float]]:
    """The definition, neuron by neuron (arXiv 2402.16438)."""
    entropies = []
    for layer in probs_LIK.tolist():
        entropies.append([])
        for probs in layer:
            total = sum(probs)
            shares = [p / total for p in probs] if total else []
            entropies[-1].append(-sum(s * math.log(s) for s in shares if s > 0) if total else math.inf)
    return entropies


def naive_select(
    probs_LIK: Tensor, *, top_rate: float, filter_rate: float, activation_bar_ratio: float
) -> list[list[tuple[int, int]]]:
    """Selection, neuron by neuron; ties go to the lower (layer, index)."""
    ordered = sorted(probs_LIK.flatten().tolist())
    filter_bar = ordered[max(1, round(len(ordered) * filter_rate)) - 1]
    activation_bar = ordered[max(1, round(len(ordered) * activation_bar_ratio)) - 1]
    candidates = []
    for layer, entropies in enumerate(naive_entropy(probs_LIK)):
        for index, entropy in enumerate(entropies):
            if any(p > filter_bar for p in probs_LIK[layer, index].tolist()):
                candidates.append((entropy, layer, index))
    num_neurons = probs_LIK.shape[0] * probs_LIK.shape[1]
    taken = sorted((layer, index) for _, layer, index in sorted(candidates)[: round(num_neurons * top_rate)])
    return [
        [(layer, index) for layer, index in taken if float(probs_LIK[layer, index, k]) > activation_bar]
        for k in range(probs_LIK.shape[2])
    ]


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


KNOBS = [
    PUBLISHED,
    {"top_rate": 0.25, "filter_rate": 0.75, "activation_bar_ratio": 0.75},
    {"top_rate": 0.01, "filter_rate": 0.9, "activation_bar_ratio": 0.99},
    {"top_rate": 1.0, "filter_rate": 0.5, "activation_bar_ratio": 0.25},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize("tokens", [10**6, 97, 7], ids="{} tokens".format)
@pytest.mark.parametrize("seed", range(3))
def test_equals_naive_loop(knobs: dict[str, float], tokens: int, seed: int) -> None:
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
def test_equals_published_algorithm(knobs: dict[str, float], seed: int) -> None:
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
    knobs = {"top_rate": 0.5, "filter_rate": 0.95, "activation_bar_ratio": 0.2}
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
