"""Intervals of means and ratios: against the loops they are, and how often they hold the truth."""

from __future__ import annotations

import math
import zlib

import numpy as np
import pytest

from lape_ds.analysis.intervals import half_widths
from lape_ds.evaluation.comparing.statistics import resamplings


def test_a_half_width_is_that_of_loops() -> None:
    rng = np.random.default_rng(0)
    values, sizes = rng.normal(1, 1, 12), rng.integers(1, 9, 12).astype(float)

    def ratio_and_error(drawn: list[int]) -> tuple[float, float]:
        total = sum(sizes[i] for i in drawn)
        ratio = sum(values[i] for i in drawn) / total
        squares = sum((values[i] - ratio * sizes[i]) ** 2 for i in drawn)
        return ratio, math.sqrt(12 / 11 * squares) / total

    ratio, error = ratio_and_error(list(range(12)))
    t = []
    for counts in resamplings(12, num_resamples=199, seed=zlib.crc32(b"some")):
        for row in counts.astype(int).tolist():
            again, again_error = ratio_and_error([i for i, times in enumerate(row) for _ in range(times)])
            t.append((again - ratio) / again_error)
    expected = error * max(sorted(t)[-5], -sorted(t)[4])
    (found,) = half_widths(values[:, None], sizes, name="some", num_resamples=199)
    assert found == pytest.approx(expected)


def test_nineteen_of_twenty_intervals_hold_the_mean() -> None:
    """400 samples of 40 from a skewed distribution of mean 1, as columns of one call: 93.6 % or more of 95 %, so none is lax."""
    values = np.random.default_rng(1).exponential(1.0, (40, 400))
    widths = half_widths(values, np.ones(40), name="held", num_resamples=999)
    held = [abs(mean - 1) <= (width or 0) for mean, width in zip(values.mean(0), widths, strict=True)]
    assert 0.925 <= np.mean(held) <= 0.985


def test_what_resamples_do_not_tell_is_none() -> None:
    values = np.zeros((20, 3))
    values[:5, 1] = 1  # too few that differ
    values[:, 2] = 2  # all alike, and not 0
    assert half_widths(values, np.ones(20), name="x", num_resamples=99) == [None, None, 0.0]
    assert half_widths(np.random.default_rng(2).normal(size=(9, 1)), np.ones(9), name="x") == [None]
    sizes = np.array([1.0] * 9 + [0.0] * 5)  # empty units are none
    assert half_widths(np.random.default_rng(3).normal(size=(14, 1)), sizes, name="x") == [None]
