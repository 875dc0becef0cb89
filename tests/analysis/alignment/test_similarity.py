"""Similarity of paired representations: cases whose answer is known, and definitions written down as loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lape_ds.analysis.alignment.numbers import MEASURES
from lape_ds.analysis.alignment.similarity import similarities
from lape_ds.errors import UserError


def measured(own: Tensor, other: Tensor) -> dict[str, float]:
    return dict(zip(MEASURES, similarities(own, other).by_sentence.mean(1).tolist(), strict=True))


def chance(own: Tensor, other: Tensor) -> dict[str, float]:
    return dict(zip(MEASURES, similarities(own, other).chance.tolist(), strict=True))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size: int) -> Tensor:
    return torch.linalg.qr(normal(size, size, seed=9)).Q


def test_the_same_representation_is_aligned_wholly() -> None:
    own = normal(30, 8)
    found = measured(own, own)
    assert [found[name] for name in MEASURES if "unpaired" not in name] == pytest.approx([1.0] * 9)


def test_a_rotation_is_seen_by_cka_alone() -> None:
    """Rotated, shifted and scaled representations have a CKA of 1, and cosines know nothing of each other any more."""
    own = normal(200, 64)
    found = measured(own, 3 * own @ rotation(64) + 0.01)
    assert found["cka"] == pytest.approx(1.0)
    assert found["retrieval"] < 0.05
    assert abs(found["cosine"]) < 0.1


def test_a_shared_direction_is_anisotropy_and_no_alignment() -> None:
    """Unrelated sentences that all have one large component: cosines near 1, and nothing above the unpaired or after centring."""
    large = 50 * torch.ones(32, dtype=torch.float64)
    own, other = normal(200, 32, seed=1) + large, normal(200, 32, seed=2) + large
    found, expected = measured(own, other), chance(own, other)
    assert found["cosine"] > 0.999
    assert found["cosine"] == pytest.approx(expected["cosine"], abs=1e-4)
    assert abs(found["cosine_above_unpaired"]) < 1e-4
    assert abs(found["centred_cosine"]) < 0.05
    assert found["centred_retrieval"] < 0.05


def test_a_language_direction_hides_alignment_that_centring_shows() -> None:
    """Each language its own offset: the nearest sentence of the other one is the same for all, until both means are gone."""
    own = normal(100, 16)
    offset = normal(16, seed=3) * 40
    found = measured(own, own + offset)
    assert found["retrieval_from_other"] == 1 / 100
    assert found["centred_retrieval"] == 1.0
    assert found["centred_cosine"] == pytest.approx(1.0)


def test_shuffled_pairs_are_at_chance() -> None:
    """Mean over all permutations of four sentences: what `chance` says, exactly, for every measure whose mean is over pairs."""
    own, other = normal(4, 3, seed=4), normal(4, 3, seed=5)
    shuffled = [measured(own, other[list(order)]) for order in itertools.permutations(range(4))]
    means = {name: float(np.mean([one[name] for one in shuffled])) for name in MEASURES}
    expected = chance(own, other)
    assert means["cka"] == pytest.approx(expected["cka"])
    for name in MEASURES:
        if "retrieval" in name:
            assert means[name] == pytest.approx(1 / 4)
            assert expected[name] == 1 / 4
    assert means["cosine_above_unpaired"] == pytest.approx(0, abs=1e-12)


def test_retrieval_counts_ties_by_their_share() -> None:
    """Rows 0 and 1 are one vector in the other language: each is right by half; of three equal rows by a third."""
    own = torch.eye(3, dtype=torch.float64)
    other = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.float64)
    found = similarities(own, other).by_sentence[MEASURES.index("retrieval_to_other")]
    assert found.tolist() == [0.5, 0.5, 1.0]
    alike = torch.ones(3, 3, dtype=torch.float64)
    assert measured(own, alike + 1e-3 * torch.eye(3))["retrieval"] == 1.0
    found = similarities(own, torch.diag(torch.tensor([1.0, 0, 0], dtype=torch.float64)) + 1)
    assert found.by_sentence[MEASURES.index("retrieval_to_other")].tolist() == pytest.approx([1, 0.5, 0.5])


def weighted_cka(own: Tensor, other: Tensor, weights: Tensor) -> float:
    """By definition: covariances of weighted sentences."""
    share = weights / weights.sum()
    first, second = (one - (share[:, None] * one).sum(0) for one in (own, other))

    def norm(left: Tensor, right: Tensor) -> float:
        return float(((share[:, None] * left).T @ right).norm() ** 2)

    return norm(first, second) / math.sqrt(norm(first, first) * norm(second, second))


def test_cka_and_its_influences_are_those_of_the_definition() -> None:
    """CKA by covariances instead of Gram matrices, and n times its derivative by each weight, by differences."""
    own = normal(12, 5, seed=6)
    other = own @ normal(5, 5, seed=7) + normal(12, 5, seed=8)
    ones, step = torch.ones(12, dtype=torch.float64), 1e-5
    value = weighted_cka(own, other, ones)
    found = similarities(own, other).by_sentence[MEASURES.index("cka")]
    assert float(found.mean()) == pytest.approx(value)
    for place in range(12):
        more, less = ones.clone(), ones.clone()
        more[place] += step
        less[place] -= step
        slope = (weighted_cka(own, other, more) - weighted_cka(own, other, less)) / (2 * step)
        assert float(found[place]) - value == pytest.approx(12 * slope, abs=1e-7)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UserError, match="at least two"):
        similarities(normal(1, 4), normal(1, 4))
    with pytest.raises(UserError, match="one representation"):
        similarities(torch.ones(4, 3), normal(4, 3))
