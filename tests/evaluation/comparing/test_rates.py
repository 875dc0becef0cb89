"""The promise: a null difference is found in at most 5.5 % of comparisons, a planted one mostly.

Through the command's own engine, on 40, 100 and 200 documents of unequal length with differences of several shapes.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from lape_ds.evaluation.comparing.differences import Estimate
from tests.evaluation.comparing.simulated import (
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
    assert by_interval(found) <= PROMISED


@pytest.mark.long
@pytest.mark.parametrize("draw", KINDS)
def test_a_null_difference_is_rare_for_every_number_of_documents_with_the_commands_resamples(draw: Draw):
    """Here 10,000 comparisons for each number, as many resamples as the command takes."""
    found = list(compared(draw, num=3 * NUM_COMPARISONS, num_resamples=10_000, seed=1))
    for size in SIZES:
        own = [one for num_documents, one in found if num_documents == size]
        assert len(own) >= NUM_COMPARISONS
        assert by_p(own) <= PROMISED, size
        assert by_interval(own) <= PROMISED, size


@pytest.mark.parametrize(
    ("draw", "gain"), [(right_or_wrong, 0.2), (bits_alike, 0.06), (bits_skewed, 0.06), (translations_alike, 0.05), (translations_failing, 0.05)]
)
def test_a_planted_difference_is_found(draw: Draw, gain: float):
    found = [one for _, one in compared(draw, num=1200, num_resamples=499, seed=2, gain=gain)]
    assert by_p(found) >= 0.8
    assert by_interval(found) >= 0.8
    shown = [one.difference for one in found if one.p is not None and one.p <= 0.05]
    right_way = [(value < 0) == (draw in (bits_alike, bits_skewed)) for value in shown]
    assert sum(right_way) >= 0.999 * len(right_way)
