"""Which ranks and GPUs the workers of a sweep get, and what becomes of the others when one fails."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from lape_ds.distributed.launch import slots_of_workers
from lape_ds.distributed.launchers.running import run_launchers
from lape_ds.distributed.stopping import STOPPED


def test_without_a_gpu_every_worker_has_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert slots_of_workers(3, 2) == [["0", "1"]] * 3
    assert slots_of_workers(1, None) == [["0"]]


@pytest.mark.parametrize(
    ("visible", "num_workers", "num_ranks", "expected"),
    [
        (None, 2, 2, ["0,1", "2,3"]),
        (None, 4, 1, ["0", "1", "2", "3"]),
        (None, 8, 1, ["0", "1", "2", "3"]),  # never two on one GPU
        (None, 2, None, ["0,1", "2,3"]),  # all there are
        (None, 1, None, ["0,1,2,3"]),
        (None, 2, 8, ["0,1,2,3"]),
        ("7,5", 2, 1, ["7", "5"]),  # the user's own, not GPU 0 on
    ],
)
def test_every_worker_has_gpus_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    num_workers: int,
    num_ranks: int | None,
    expected: list[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert slots_of_workers(num_workers, num_ranks) == [gpus.split(",") for gpus in expected]


def process(seconds: float, code: int) -> list[str]:
    return [sys.executable, "-c", f"import sys, time; time.sleep({seconds}); sys.exit({code})"]


@pytest.mark.parametrize("failing", [0, 1])
def test_when_one_fails_the_others_are_stopped_and_its_code_is_told(failing: int) -> None:
    commands = [process(60, 0), process(60, 0)]
    commands[failing] = process(0.2, 2)
    started = time.monotonic()
    assert run_launchers(commands) == 2
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("code", [0, 1, STOPPED])
def test_a_launchers_own_code_is_told(code: int) -> None:
    """Also that of ranks which somebody else has stopped: what comes after must not take the run for a finished one."""
    assert run_launchers([process(0, code), process(0.2, 0)]) == code
