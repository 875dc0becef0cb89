"""Student's t for means over few languages: p and half of the 95 % interval, with no table and no other library.

Below the grids. The studentised bootstrap of the comparison needs more than the three or twelve languages that a matrix has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from lape_ds.evaluation.comparing.statistics import LEVEL


def two_sided_p(t: float, degrees: int) -> float:
    """Probability of a |t| at least as large, of so many degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, 26.7.3 and 26.7.4.
    """
    theta = math.atan(abs(t) / math.sqrt(degrees))
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = degrees % 2
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    if odd:
        inside = 2 / math.pi * (theta + (sine * total if degrees > 1 else 0.0))
    else:
        inside = sine * total
    return max(0.0, 1.0 - inside)


def quantile(degrees: int) -> float:
    """The t beyond which, on both sides, 5 % lie."""
    low, high = 0.0, 1.0
    while two_sided_p(high, degrees) > LEVEL:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, degrees) > LEVEL else (low, middle)
    return high


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """A mean, half of its 95 % interval and the p of its being 0; None where there is one value, or all are the same."""
    mean = fmean(values)
    if len(values) < 2 or (error := stdev(values) / math.sqrt(len(values))) == 0:
        return mean, None, None
    degrees = len(values) - 1
    return mean, quantile(degrees) * error, two_sided_p(mean / error, degrees)
