"""The gain-forgetting frontier: what a method gains on its target for what it costs the other languages.

After training, on numbers alone; `report.py` reads the runs and writes tables and picture. One learning rate each ranks
methods arbitrarily, for a gentle run of one is laid beside a harsh run of another; only at equal forgetting, or at equal
gain, can they be compared.

Forgetting is the mean change of held-out bits per byte over all languages that are not trained (positive: worse), gain the
mean fall of the trained ones (positive: better).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean


@dataclass(frozen=True)
class Point:
    """One run, or the mean of the runs of one learning rate; bits per byte.

    Attributes:
        forgetting: Mean rise of the other languages.
        gain: Mean fall of the trained languages.
    """

    forgetting: float
    gain: float


@dataclass(frozen=True)
class RatePoint:
    """The runs of one variant at one learning rate.

    Attributes:
        learning_rate: Peak.
        by_seed: One point per seed that came to its end.
        diverged: Seeds of which training left the finite numbers.
        missing: Seeds that are not finished yet.
    """

    learning_rate: float
    by_seed: dict[int, Point]
    diverged: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()

    @property
    def mean(self) -> Point | None:
        """Mean over the seeds; None if there is none, or if one diverged: the rest would be a choice of the lucky ones."""
        if self.diverged or not self.by_seed:
            return None
        points = self.by_seed.values()
        return Point(fmean(point.forgetting for point in points), fmean(point.gain for point in points))


@dataclass(frozen=True)
class At:
    """A method's value at one level, read from its frontier.

    Attributes:
        mean: From the frontier of the means over seeds; None outside what was measured.
        by_seed: From each seed's own frontier, of the seeds that reach there.
    """

    mean: float | None
    by_seed: dict[int, float]

    @property
    def spread(self) -> float | None:
        """Half the range over the seeds; None where fewer than two reach there."""
        values = self.by_seed.values()
        return (max(values) - min(values)) / 2 if len(values) > 1 else None


class Frontier:
    """The points of one method that no other of its points beats, joined by straight lines.

    A point beats another if it forgets no more and gains no less. What lies between two neighbours of the frontier is
    interpolated. Nothing is extrapolated: below the gentlest point and beyond the harshest there is no value. Between the
    frontier's end and a beaten point that is harsher still (more forgotten, less gained), the frontier's end counts; so it does
    at its other end.

    Attributes:
        points: Of the frontier, by rising forgetting; their gain rises too.
        forgetting_range: Where `gain_at` has a value.
        gain_range: Where `forgetting_at` has a value.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        """Finds the frontier of at least one point."""
        kept: list[Point] = []
        for point in sorted(points, key=lambda point: (point.forgetting, -point.gain)):
            if not kept or point.gain > kept[-1].gain:
                kept.append(point)
        self.points = tuple(kept)
        self.forgetting_range = kept[0].forgetting, max(point.forgetting for point in points)
        self.gain_range = min(point.gain for point in points), kept[-1].gain

    def gain_at(self, forgetting: float) -> float | None:
        """The most that is gained for so much forgetting; None outside the measured range."""
        least, most = self.forgetting_range
        if not least <= forgetting <= most:
            return None
        return _interpolated([(point.forgetting, point.gain) for point in self.points], forgetting)

    def forgetting_at(self, gain: float) -> float | None:
        """The least that is forgotten for so much gain; None outside the measured range."""
        least, most = self.gain_range
        if not least <= gain <= most:
            return None
        return _interpolated([(point.gain, point.forgetting) for point in self.points], gain)


def _interpolated(pairs: Sequence[tuple[float, float]], x: float) -> float:
    """Straight lines between pairs of rising x; the ends' own values beyond them."""
    if x <= pairs[0][0]:
        return pairs[0][1]
    for (x0, y0), (x1, y1) in pairwise(pairs):
        if x <= x1:
            share = (x - x0) / (x1 - x0)
            return y0 * (1 - share) + y1 * share  # exact at both ends
    return pairs[-1][1]


class MethodFrontier:
    """The frontiers of one method: of the means over seeds, and of each seed.

    Attributes:
        name: The variant's.
        rates: All of its learning rates.
        mean: Of the means; None if no rate has one.
        by_seed: Of each seed with a finished run.
    """

    def __init__(self, name: str, rates: Sequence[RatePoint]) -> None:
        self.name = name
        self.rates = tuple(rates)
        means = [rate.mean for rate in rates if rate.mean is not None]
        self.mean = Frontier(means) if means else None
        kept = [rate.by_seed for rate in rates if rate.mean is not None]
        seeds = sorted({seed for points in kept for seed in points})
        self.by_seed = {seed: Frontier([points[seed] for points in kept if seed in points]) for seed in seeds}

    def is_on_frontier(self, rate: RatePoint) -> bool:
        """Whether the mean of these runs is one of the frontier's points."""
        return self.mean is not None and rate.mean in self.mean.points

    def gain_at(self, forgetting: float) -> At:
        """Gain at equal forgetting."""
        by_seed = {seed: frontier.gain_at(forgetting) for seed, frontier in self.by_seed.items()}
        return At(None if self.mean is None else self.mean.gain_at(forgetting), _known(by_seed))

    def forgetting_at(self, gain: float) -> At:
        """Forgetting at equal gain."""
        by_seed = {seed: frontier.forgetting_at(gain) for seed, frontier in self.by_seed.items()}
        return At(None if self.mean is None else self.mean.forgetting_at(gain), _known(by_seed))


def _known(values: dict[int, float | None]) -> dict[int, float]:
    return {seed: value for seed, value in values.items() if value is not None}


def levels(ranges: Sequence[tuple[float, float]], *, most: int) -> list[float]:
    """Round levels at which methods can be compared: in the measured range of at least two, or else of any.

    Of 0, ±0.001, ±0.002, ±0.005, ±0.01, …, the larger ones before the smaller; where fewer than three of these fit, multiples of
    a round step.

    Args:
        ranges: Lowest and highest value of each method.
        most: How many at most.

    Returns:
        Rising; empty if the ranges are so narrow that they hold no round number.
    """
    magnitudes = [float(f"{digit}e{power}") for power in range(-3, 3) for digit in (1, 2, 5)]
    rounded = [0.0, *(sign * magnitude for magnitude in reversed(magnitudes) for sign in (1, -1))]
    ends = [end for pair in ranges for end in pair]
    step = _round_step((max(ends) - min(ends)) / most)
    multiples = [
        round(number * step, 6)
        for number in range(math.ceil(min(ends) / step), math.floor(max(ends) / step) + 1)
    ]
    for needed in (2, 1):
        for candidates, enough in ((rounded, 3), (multiples, 1)):
            found = [
                level for level in candidates if sum(low <= level <= high for low, high in ranges) >= needed
            ]
            if len(found) >= enough:
                return sorted(found[:most])
    return []


def _round_step(width: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not less; at least 0.001."""
    power = math.floor(math.log10(max(width, 1e-3)))
    return next(
        step for step in (float(f"{digit}e{power}") for digit in (1, 2, 5, 10)) if step >= width * 0.999
    )
