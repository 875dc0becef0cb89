"""Interleaved rounds and paired ratios: the way in which anything is timed here.

A machine that is busy, warm or throttled slows its neighbours in time alike. So every contender takes one turn in each
round, in an order drawn anew, and what is reported is the median over the rounds of the ratio within a round.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lape_ds.runlog import Progress


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(lower, median, upper)


def interleave(
    turns: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int,
    seed: int,
    device: torch.device,
    description: str,
    between: Callable[[str], None] = lambda name: None,
) -> dict[str, list[float]]:
    """Times every contender once in each round.

    Args:
        turns: By name, the work of one turn.
        rounds: Counted rounds.
        warmup: Rounds before them, thrown away.
        seed: Of the orders.
        device: Where the work runs; waited for at both ends of a turn.
        description: Of the progress shown.
        between: Called with the name before its turn, untimed.

    Returns:
        Seconds by name, one a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    order = list(turns)
    shuffle = random.Random(seed).shuffle
    with Progress(description, total=(rounds + warmup) * len(order), unit="turns") as bar:
        for number in range(warmup + rounds):
            shuffle(order)
            for name in order:
                between(name)
                taken = _timed(turns[name], device)
                if number >= warmup:
                    seconds[name].append(taken)
                bar.advance(note=name)
    return seconds


def _timed(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speed_ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Spread]]:
    """`[name][other]`: how many times as fast `name` is as `other`, round by round, each doing the same work."""
    return {
        name: {
            other: Spread.of([theirs / ours for ours, theirs in zip(mine, seconds[other], strict=True)])
            for other in seconds
            if other != name
        }
        for name, mine in seconds.items()
    }


def recorded_ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """`speed_ratios` as records hold them: `ratios`, the medians, and `ratio_quartiles`, [lower, upper]."""
    ratios = speed_ratios(seconds)
    return {
        "ratios": {a: {b: spread.median for b, spread in row.items()} for a, row in ratios.items()},
        "ratio_quartiles": {
            a: {b: [spread.lower, spread.upper] for b, spread in row.items()} for a, row in ratios.items()
        },
    }
