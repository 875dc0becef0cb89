"""What the meters say against hand-made cases, and against the profiler's record of the real allocator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lape_ds.bench.contenders import contender
from lape_ds.bench.shapes import build_model, random_batch
from lape_ds.model.meters import SavedForBackward, count_flops, peak_bytes, storage_bytes
from tests.bench.shapes import NEURONS, TINY

CPU = torch.device("cpu")


def test_storages_count_once_and_whole() -> None:
    whole = torch.zeros(10)
    assert storage_bytes([whole, whole[:3], whole.view(2, 5), torch.zeros(2, dtype=torch.bfloat16)]) == 44


def test_saved_for_backward_by_hand() -> None:
    weight = nn.Parameter(torch.ones(5, 3))
    hidden = torch.ones(4, 3)

    def loss() -> Tensor:
        product = hidden @ weight.T  # keeps hidden and weight, which are excluded
        (product + weight.sum()).tanh()  # keeps its output, but leads nowhere and goes at once
        squared = product * product  # keeps product, 4 * 5 * 4 bytes, once
        return squared.exp().sum()  # keeps exp's output, as many

    with SavedForBackward(excluding=[weight, hidden]) as saved:
        kept = loss()
    assert saved.num_bytes() == 2 * 80
    del kept
    assert saved.num_bytes() == 0


def test_flops_of_a_product_and_its_backward() -> None:
    weight, hidden = torch.ones(5, 3, requires_grad=True), torch.ones(4, 3)
    with count_flops() as flops:
        (hidden @ weight.T).sum().backward()
    assert flops() == 2 * (2 * 4 * 3 * 5)


def test_peak_by_hand() -> None:
    existing = torch.ones(1000)

    def work() -> None:
        first = existing * 2  # 4000 bytes
        second = first + 1  # 8000
        del first  # 4000
        third = second.view(10, 100)  # the same storage
        existing.add_(third.flatten())  # in place
        second[:500].clone()  # 6000

    assert peak_bytes(work, CPU, [existing]) == 8000


def allocator_peak(work: Callable[[], object]) -> int:
    """Of the real allocator: a running sum over the profiler's allocation events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    profiler: Any = recorded.profiler
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def test_peak_of_a_training_step_as_the_allocator_has_it() -> None:
    base, batch = build_model(TINY, CPU, 0), random_batch(TINY, CPU, 1)
    for name in ("full", "masked", "lora_all"):
        made = contender(name, base, NEURONS, own_weights=True, learning_rate=1e-3)
        made.step(batch)
        existing: list[Tensor] = [*made.loss.parameters(), *made.loss.buffers()]
        counted = peak_bytes(lambda made=made: made.step(batch), CPU, existing)
        real = allocator_peak(lambda made=made: made.step(batch))
        assert abs(counted / real - 1) < 0.02, (name, counted, real)
