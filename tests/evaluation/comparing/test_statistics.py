"""Resampling against a loop, exact tests against fractions, Holm against a worked example."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest

from lape_ds.evaluation.comparing.statistics import (
    half_width_factors,
    holm,
    mcnemar,
    p_values,
    resamplings,
    studentised,
)


def by_fractions(gained: int, lost: int) -> float:
    """Sum of the probabilities of every division at least as uneven."""
    num = gained + lost
    uneven = [k for k in range(num + 1) if abs(2 * k - num) >= abs(gained - lost)]
    return float(sum(Fraction(math.comb(num, k), 2**num) for k in uneven))


@pytest.mark.parametrize(
    "discordant", [(0, 0), (1, 0), (5, 0), (0, 6), (3, 3), (2, 9), (41, 17), (60, 60), (130, 70)]
)
def test_mcnemar_is_the_sum_of_fractions(discordant: tuple[int, int]):
    assert mcnemar(*discordant) == pytest.approx(by_fractions(*discordant), rel=1e-12)


@pytest.mark.parametrize("discordant", [(1, 8), (480, 520), (5100, 4900), (7000, 5000), (20_000, 20_001)])
def test_mcnemar_is_scipys_also_for_many_documents(discordant: tuple[int, int]):
    gained, lost = discordant
    assert mcnemar(gained, lost) == pytest.approx(binomtest(gained, gained + lost).pvalue, rel=1e-9)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_mcnemar_of_what_is_beyond_any_number():
    assert mcnemar(10_000, 0) == 0.0


def test_holm_by_hand():
    # Sorted .005 .01 .03 .04 times 4 3 2 1 is .02 .03 .06 .04; the last may not be smaller than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_resamplings_are_drawn_with_replacement_and_the_same_again():
    parts = [np.concatenate(list(resamplings(7, num_resamples=4000, seed=3))) for _ in range(2)]
    assert (parts[0] == parts[1]).all()
    assert parts[0].shape == (4000, 7)
    assert (parts[0].sum(axis=1) == 7).all()
    assert parts[0].mean(axis=0) == pytest.approx(np.ones(7), abs=0.06)  # four standard errors
    assert parts[0].var(axis=0) == pytest.approx(np.full(7, 6 / 7), abs=0.1)
    other = np.concatenate(list(resamplings(7, num_resamples=4000, seed=4)))
    assert (parts[0] != other).any()


def test_large_numbers_of_documents_come_in_parts():
    parts = list(resamplings(1_500_000, num_resamples=5, seed=0))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert len({part.tobytes() for part in parts}) == 3


@pytest.mark.parametrize("num_resamples", [499, 999, 9999, 10_000])
def test_p_is_at_most_a_twentieth_exactly_where_the_interval_excludes_zero(num_resamples: int):
    rng = np.random.default_rng(0)
    t = rng.standard_t(5, size=(num_resamples, 1)) + 0.3
    edge = half_width_factors(t)
    for observed in (edge * (1 - 1e-9), edge, edge * (1 + 1e-9), edge / 2, edge * 2):
        assert (p_values(t, observed) <= 0.05) == (observed > edge)


def test_p_is_twice_the_larger_share_beyond():
    t = np.arange(-40.0, 60.0)[:, None]  # 100 resamples: 20 at or above 40, one at or below -40
    assert p_values(t, np.array([40.0])) == pytest.approx([2 * 21 / 101])
    assert p_values(t, np.array([0.0])) == 1.0


def test_far_beyond_every_resample_p_goes_on_falling():
    """Of a normal distribution: within a factor of a few where p is known, and never below it by more than a tenth."""
    t = np.random.default_rng(1).normal(size=(10_000, 1))
    before = 1.0
    for observed in (3.0, 4.0, 5.0, 6.0):
        p = p_values(t, np.array([observed]))[0]
        exact = math.erfc(observed / math.sqrt(2))
        assert 0.9 * exact < p < before
        before = p
    assert before < 1e-5  # Holm over a thousand rows needs as little


def test_a_resample_of_equal_documents_tells_nothing():
    one = np.ones((1, 1))
    assert studentised(2 * one, 0 * one, one[0]) == np.inf
    assert studentised(-2 * one, 0 * one, one[0]) == -np.inf
    assert studentised(0 * one, 0 * one, one[0]) == 0
    assert studentised(2 * one, 4 * one, one[0]) == 1
