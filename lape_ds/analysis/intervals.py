"""How sure a mean or a ratio is: 95 % intervals by resampling what it is of.

Below the scores and the analyses, which hand in what each sentence, document or bucket of documents adds. Symmetric, from the
studentised bootstrap, as evaluation/comparing/statistics.py explains; needs numpy alone beside it.

Source: Hall, On symmetric bootstrap confidence intervals, J. R. Stat. Soc. B 50, 1988; Cochran, Sampling Techniques, 1977,
chapter 6 (ratio).
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from lape_ds.evaluation.comparing.differences import MIN_DIFFERING, MIN_DOCUMENTS
from lape_ds.evaluation.comparing.statistics import Array, half_width_factors, resamplings, studentised

NUM_RESAMPLES = 10_000


def half_widths(
    values: Array, sizes: Array, *, name: str, num_resamples: int = NUM_RESAMPLES
) -> list[float | None]:
    """Half of the 95 % interval of each ratio sum(values) / sum(sizes); with sizes of 1 these are means.

    Args:
        values: What each of the n units adds to each of C quantities, `[n, C]`.
        sizes: How much each unit is, at least 0, `[n]`.
        name: Of the draw: equal names and n have equal resamples.
        num_resamples: How many.

    Returns:
        C of them; None where resamples do not tell: fewer than 10 units that are not empty, or fewer than 6 of which add
        anything to the quantity. 0 where all add alike, as in the comparison of scores.
    """
    values, sizes = values[sizes > 0], sizes[sizes > 0]
    num_units, num_columns = values.shape
    if num_units < MIN_DOCUMENTS:
        return [None] * num_columns
    ratios, variances = (
        part[0] for part in ratios_and_variances(values, sizes[:, None], np.ones((1, num_units)))
    )
    t = np.empty((num_resamples, num_columns))
    start = 0
    seed = zlib.crc32(name.encode())
    for counts in resamplings(num_units, num_resamples=num_resamples, seed=seed):
        drawn, drawn_variances = ratios_and_variances(values, sizes[:, None], counts)
        t[start : start + len(counts)] = studentised(drawn - ratios, drawn_variances, variances)
        start += len(counts)
    tells = (values != 0).sum(axis=0) >= MIN_DIFFERING
    alike = np.sqrt(variances) <= 1e-12 * np.maximum(1.0, np.abs(ratios))
    found = np.where(alike, 0.0, widths(variances, t))
    return [
        float(half_width) if told and math.isfinite(half_width) else None
        for half_width, told in zip(found, tells, strict=True)
    ]


def ratios_and_variances(values: Array, sizes: Array, counts: Array) -> tuple[Array, Array]:
    """Ratios of resamples and their variances, linearised: sums of (value - ratio * size)^2 over the square of all sizes.

    Args:
        values: `[n, C]`.
        sizes: `[n, 1]`.
        counts: How often each unit is in each resample, `[resamples, n]`.

    Returns:
        `[resamples, C]` each.
    """
    whole = counts @ sizes
    ratios = counts @ values / whole
    squares = counts @ values**2 - 2 * ratios * (counts @ (values * sizes)) + ratios**2 * (counts @ sizes**2)
    n = len(sizes)
    return ratios, np.maximum(squares, 0.0) / whole**2 * n / max(1, n - 1)


def widths(variances: Array, t: Array) -> Array:
    """The standard error times what the resamples' t* say; NaN or infinite where they do not tell.

    Args:
        variances: In the data, `[C]`.
        t: Of the resamples, `[resamples, C]`.
    """
    with np.errstate(invalid="ignore"):  # where all are alike: 0 times infinity is not known
        return np.sqrt(variances) * half_width_factors(t)
