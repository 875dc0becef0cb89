"""The promise: a null difference is found in at most 5.5 % of comparisons, a planted one mostly.

Through the command's own engine, on 40, 100 and 200 documents of unequal length with differences of several shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lape_ds.evaluation.comparing.differences import Estimate, estimate
from tests.evaluation.comparing.simulated import (
    NUM_MODELS,
    SIZES,
    Draw,
    bits_alike,
    bits_rare,
    bits_skewed,
    compared,
    right_or_wrong,
    translations_alike,
    translations_failing,
)

NUM_COMPARISONS = 10_000
PROMISED = 0.055
KINDS = [right_or_wrong, bits_alike, bits_skewed, bits_rare, translations_alike, translations_failing]


def by_p(found: Sequence[Estimate]) -> float:
    return sum(one.p is not None and one.p <= 0.05 for one in found) / len(found)


def by_interval(found: Sequence[Estimate]) -> float:
    return sum(one.half_width is not None and abs(one.difference) > one.half_width for one in found) / len(
        found
    )


@pytest.mark.parametrize("draw", KINDS)
def test_a_null_difference_is_found_at_most_at_the_promised_rate(draw: Draw):
    found = [one for _, one in compared(draw, num=NUM_COMPARISONS, num_resamples=499, seed=0)]
    assert len(found) >= NUM_COMPARISONS
    assert by_p(found) <= PROMISED
    assert by_interval(found) == by_p(found)


def test_a_mean_over_tasks_without_a_difference_has_one_at_most_at_the_promised_rate():
    """Three tasks of 40 documents and one of 100, rescaled by unlike chances."""
    rng = np.random.default_rng(3)
    tasks, means = {}, {}
    for number in range(NUM_COMPARISONS // NUM_MODELS):
        own = {f"{number} {place}": right_or_wrong(rng, size) for place, size in enumerate((40, 40, 40, 100))}
        tasks |= own
        means[str(number)] = dict(zip(own, (1 / 3, 1 / 3, 1 / 2, 1 / 4), strict=True))
    _, averaged = estimate(tasks, means, num_resamples=499, seed=0)
    found = [one for models in averaged.values() for one in models]
    assert len(found) == NUM_COMPARISONS
    assert 0.02 < by_p(found) <= PROMISED
    assert by_p(found) == by_interval(found)


@pytest.mark.long
@pytest.mark.parametrize("draw", KINDS)
def test_a_null_difference_is_rare_for_every_number_of_documents(draw: Draw):
    """10,000 comparisons for each number, on more resamples."""
    found = list(compared(draw, num=3 * NUM_COMPARISONS, num_resamples=1999, seed=1))
    for size in SIZES:
        own = [one for num_documents, one in found if num_documents == size]
        assert len(own) >= NUM_COMPARISONS
        assert by_p(own) <= PROMISED, size
        assert by_interval(own) == by_p(own), size


@pytest.mark.parametrize(
    ("draw", "gain"),
    [
        (right_or_wrong, 0.2),
        (bits_alike, 0.06),
        (bits_skewed, 0.06),
        (translations_alike, 0.05),
        (translations_failing, 0.05),
    ],
)
def test_a_planted_difference_is_found(draw: Draw, gain: float):
    found = [one for _, one in compared(draw, num=1200, num_resamples=499, seed=2, gain=gain)]
    assert by_p(found) >= 0.8
    assert by_interval(found) == by_p(found)
    shown = [one.difference for one in found if one.p is not None and one.p <= 0.05]
    right_way = [(value < 0) == (draw in (bits_alike, bits_skewed)) for value in shown]
    assert sum(right_way) >= 0.999 * len(right_way)


@pytest.mark.parametrize(
    ("draw", "gain", "truth"),
    [(right_or_wrong, 0.1, 0.1), (bits_alike, 0.06, -0.06), (bits_skewed, 0.06, -0.06)],
)
def test_the_interval_holds_the_planted_difference(draw: Draw, gain: float, truth: float):
    found = [one for _, one in compared(draw, num=6000, num_resamples=499, seed=4, gain=gain)]
    held = [one.half_width is None or abs(one.difference - truth) <= one.half_width for one in found]
    assert sum(held) / len(held) >= 1 - PROMISED
