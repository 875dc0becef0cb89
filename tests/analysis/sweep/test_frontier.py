"""Frontiers against brute force and against figures worked out by hand."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from lape_ds.analysis.style import spread_out
from lape_ds.analysis.sweep.frontier import Frontier, MethodFrontier, Point, RatePoint, levels


def drawn(seed: int, number: int) -> list[Point]:
    """Points on a coarse grid, so that ties and equal points come up."""
    dice = random.Random(seed)
    return [Point(dice.randint(-3, 9) / 10, dice.randint(-2, 8) / 10) for _ in range(number)]


def beaten(point: Point, points: list[Point]) -> bool:
    return any(
        other.forgetting <= point.forgetting and other.gain >= point.gain and other != point
        for other in points
    )


def brute_gain_at(points: list[Point], forgetting: float) -> float | None:
    """The highest of all straight lines between unbeaten points, and of all points that forget no more.

    Neighbours only: a chord over the head of a frontier point would promise what was not measured.
    """
    if not min(p.forgetting for p in points) <= forgetting <= max(p.forgetting for p in points):
        return None
    unbeaten = sorted({(p.forgetting, p.gain) for p in points if not beaten(p, points)})
    values = [gain for x, gain in unbeaten if x <= forgetting]
    for (x0, y0), (x1, y1) in pairwise(unbeaten):
        if x0 <= forgetting <= x1:
            values.append(y0 + (y1 - y0) * (forgetting - x0) / (x1 - x0))
    return max(values)


@pytest.mark.parametrize("seed", range(40))
def test_frontier_is_what_nothing_beats(seed: int) -> None:
    points = drawn(seed, 1 + seed % 8)
    expected = {point for point in points if not beaten(point, points)}
    frontier = Frontier(points)
    assert set(frontier.points) == expected
    assert list(frontier.points) == sorted(frontier.points, key=lambda p: p.forgetting)


@pytest.mark.parametrize("seed", range(40))
def test_gain_at_equal_forgetting(seed: int) -> None:
    points = drawn(seed, 1 + seed % 8)
    frontier = Frontier(points)
    for level in [step / 40 for step in range(-20, 45)]:
        assert frontier.gain_at(level) == pytest.approx(brute_gain_at(points, level)), level


@pytest.mark.parametrize("seed", range(40))
def test_forgetting_is_gain_seen_from_the_other_side(seed: int) -> None:
    """Turn the picture by a half and swap its axes: least forgetting becomes most gain."""
    points = drawn(seed, 1 + seed % 8)
    turned = [Point(forgetting=-p.gain, gain=-p.forgetting) for p in points]
    for level in [step / 40 for step in range(-15, 40)]:
        expected = brute_gain_at(turned, -level)
        found = Frontier(points).forgetting_at(level)
        assert found == (None if expected is None else pytest.approx(-expected)), level


def test_by_hand() -> None:
    # (0.1, 0.2), (0.3, 0.5) and (0.5, 0.6) in a row; (0.2, 0.1) is beaten by the first, (0.9, 0.4) by the second.
    points = [Point(0.3, 0.5), Point(0.9, 0.4), Point(0.1, 0.2), Point(0.2, 0.1), Point(0.5, 0.6)]
    frontier = Frontier(points)
    assert frontier.points == (Point(0.1, 0.2), Point(0.3, 0.5), Point(0.5, 0.6))
    assert frontier.gain_at(0.09) is None  # gentler than the gentlest run
    assert frontier.gain_at(0.1) == 0.2
    assert frontier.gain_at(0.2) == pytest.approx(0.35)  # half-way from 0.2 to 0.5
    assert frontier.gain_at(0.4) == pytest.approx(0.55)
    assert frontier.gain_at(0.7) == 0.6  # harsher runs gained less: the frontier's end counts
    assert frontier.gain_at(0.91) is None  # harsher than the harshest run
    assert frontier.forgetting_at(0.35) == pytest.approx(0.2)
    assert frontier.forgetting_at(0.15) == 0.1  # a run gained 0.1 and forgot more
    assert frontier.forgetting_at(0.09) is None
    assert frontier.forgetting_at(0.61) is None


def test_single_point() -> None:
    frontier = Frontier([Point(0.1, 0.2)])
    assert frontier.gain_at(0.1) == 0.2
    assert frontier.gain_at(0.11) is None
    assert frontier.forgetting_at(0.2) == 0.1
    assert frontier.forgetting_at(0.19) is None


def method(*rates: RatePoint) -> MethodFrontier:
    return MethodFrontier("full", rates)


def test_means_and_spread_over_seeds() -> None:
    gentle = RatePoint(1e-5, {0: Point(0.0, 0.1), 1: Point(0.2, 0.1)})
    harsh = RatePoint(1e-4, {0: Point(0.4, 0.5), 1: Point(0.4, 0.7)})
    both = method(gentle, harsh)
    assert both.mean is not None
    assert [(point.forgetting, point.gain) for point in both.mean.points] == [
        (pytest.approx(0.1), pytest.approx(0.1)),
        (pytest.approx(0.4), pytest.approx(0.6)),
    ]
    at = both.gain_at(0.3)
    # Of the means: 0.1 + 0.5 * (0.2 / 0.3). Seed 0: 0.1 + 0.4 * (0.3 / 0.4); seed 1: 0.1 + 0.6 * (0.1 / 0.2).
    assert at.mean == pytest.approx(0.1 + 0.5 * 2 / 3)
    assert at.by_seed == {0: pytest.approx(0.4), 1: pytest.approx(0.4)}
    assert at.spread == pytest.approx(0)
    at = both.gain_at(0.4)
    assert at.spread == pytest.approx(0.1)  # half of 0.7 - 0.5
    at = both.gain_at(0.15)  # seed 1 begins at 0.2
    assert at.by_seed.keys() == {0}
    assert at.spread is None
    assert at.mean is not None
    at = both.forgetting_at(0.6)
    assert at.mean == pytest.approx(0.4)
    assert at.by_seed == {1: pytest.approx(0.2 + 0.2 * 5 / 6)}


def test_a_rate_that_diverged_once_is_out_for_every_seed() -> None:
    gentle = RatePoint(1e-5, {0: Point(0.1, 0.1), 1: Point(0.1, 0.1)})
    lucky = RatePoint(1e-2, {0: Point(0.2, 0.9)}, diverged=(1,))
    both = method(gentle, lucky)
    assert both.mean is not None
    assert both.mean.points == (Point(0.1, 0.1),)
    assert both.by_seed[0].points == (Point(0.1, 0.1),)
    assert both.gain_at(0.2).mean is None
    assert not both.is_on_frontier(lucky)
    assert method(lucky).mean is None
    assert method(lucky).gain_at(0.2).by_seed == {}


def test_missing_seeds_leave_the_mean_of_the_others() -> None:
    half = RatePoint(1e-4, {1: Point(0.2, 0.3)}, missing=(0,))
    nothing = RatePoint(1e-3, {}, missing=(0, 1))
    found = method(half, nothing)
    assert found.mean is not None
    assert found.mean.points == (Point(0.2, 0.3),)
    assert found.by_seed.keys() == {1}
    assert found.is_on_frontier(half)
    assert not found.is_on_frontier(nothing)


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        # Inside both; the larger ones and 0 come before the smaller.
        ([(-0.01, 1.2), (0.004, 0.6)], [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]),
        ([(-0.06, 0.3), (-0.1, 0.3)], [-0.05, 0, 0.02, 0.05, 0.1, 0.2]),
        (
            [(0.11, 0.18), (0.1, 0.19)],
            [0.12, 0.14, 0.16, 0.18],
        ),  # no round magnitude between: multiples of 0.02
        ([(0.0, 0.1), (0.2, 0.6)], [0.0, 0.02, 0.05, 0.1, 0.2, 0.5]),  # they do not overlap: those of either
        ([(0.03, 0.3)], [0.05, 0.1, 0.2]),  # one method alone
        ([(0.1234, 0.1234)], []),  # one point
    ],
)
def test_levels(ranges: list[tuple[float, float]], expected: list[float]) -> None:
    assert levels(ranges, most=6) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_moved_as_little_as_possible(seed: int) -> None:
    dice = random.Random(seed)
    heights = [dice.random() for _ in range(1 + seed % 9)]
    gap = 0.12
    placed = spread_out(heights, gap=gap)
    by_height = [placed[index] for index in sorted(range(len(heights)), key=lambda index: heights[index])]
    assert all(high - low >= gap - 1e-9 for low, high in pairwise(by_height))

    def cost(values: list[float]) -> float:
        return sum((value - height) ** 2 for value, height in zip(values, heights, strict=True))

    # Least squares is convex: no small step that keeps order and gaps may be cheaper.
    for _ in range(300):
        tried = [value + dice.uniform(-0.01, 0.01) for value in placed]
        row = [tried[index] for index in sorted(range(len(heights)), key=lambda index: heights[index])]
        if all(high - low >= gap for low, high in pairwise(row)):
            assert cost(tried) >= cost(placed) - 1e-12
