"""Which weights ZeRO-3 holds whole at a time, and how often it gathers each: DeepSpeed's own rules, followed on paper.

Beside the profile, whose order of uses it walks. Read in DeepSpeed 0.19.8, partitioned_param_coordinator.py: a module's
weights are gathered before it computes, the next ones ahead of time up to a bucket, and a weight is let go after its module
unless it is needed again within `stage3_max_reuse_distance` elements.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from lape_ds.training.plan.profile import Use


@dataclass(frozen=True)
class Gathers:
    """Of one micro-batch.

    Attributes:
        live: Most elements that are whole at one time.
        fetched: Elements gathered, each time counted.
    """

    live: int
    fetched: int


def follow(uses: Sequence[Use], zero: DeepSpeedZeroConfig) -> Gathers:
    """Walks through a micro-batch, from the second one on: in the first one DeepSpeed only learns the order."""
    kept = _kept_after(uses, int(zero.max_reuse_distance))
    queue = deque((step, number, numel) for step, use in enumerate(uses) for number, numel in use.parameters)
    live: dict[int, int] = {}
    held = fetched = most = 0

    def fetch(number: int, numel: int) -> None:
        nonlocal held, fetched, most
        live[number] = numel
        held, fetched = held + numel, fetched + numel
        most = max(most, held)

    for step, use in enumerate(uses):
        for number, numel in use.parameters:
            if number not in live:
                fetch(number, numel)
        while queue and queue[0][0] <= step:
            queue.popleft()
        ahead, room = 0, min(int(zero.max_live_parameters) - held, int(zero.prefetch_bucket_size))
        while queue and ahead < room:
            _, number, numel = queue.popleft()
            if number not in live:
                fetch(number, numel)
                ahead += numel
        reached = queue[0][0] if queue else len(uses)
        for number, numel in use.parameters:
            if (
                number in live
                and number not in kept[step]
                and not _passed_over(uses[step + 1 : reached], number)
            ):
                del live[number]
                held -= numel
    return Gathers(most, fetched)


def _passed_over(uses: Sequence[Use], number: int) -> bool:
    """Whether the prefetch, now ahead of these uses, found a weight there and left it out: it must stay until then."""
    return any(number == other for use in uses for other, _ in use.parameters)


def _kept_after(uses: Sequence[Use], distance: int) -> list[set[int]]:
    """For every use, the parameters that are needed again within so many elements after it."""
    kept: list[set[int]] = []
    for step, use in enumerate(uses):
        wanted, near, passed = {number for number, _ in use.parameters}, set[int](), 0
        for later in uses[step + 1 :]:
            if passed >= distance or near == wanted:
                break
            near |= wanted & {number for number, _ in later.parameters}
            passed += later.numel
        kept.append(near)
    return kept
