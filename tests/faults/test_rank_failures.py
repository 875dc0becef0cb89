"""Whatever ends one rank ends all of them in a minute, with one line that tells why; what is only slow ends nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lape_ds.training.metrics import read_metrics
from tests.faults.job import Job


@pytest.fixture
def training(tiny_recipe: Path, tmp_path: Path) -> Iterator[Job]:
    """Two ranks in the middle of a training that would go on for hours."""
    endless = ["train.max_steps=1000000", "train.epochs=1000000", "train.checkpoint_every_steps=1000000"]
    with Job(tmp_path, [str(tiny_recipe), f"output_dir={tmp_path}/out", *endless]) as job:
        job.start()
        job.wait_until(lambda: num_steps(job) > 2)
        yield job


def num_steps(job: Job) -> int:
    path = job.folder / "out" / "train" / "subnetwork" / "metrics.jsonl"
    return sum("loss" in line for line in read_metrics(path)) if path.exists() else 0


def test_a_stopped_rank_is_waited_for_and_a_killed_one_is_not(training: Job) -> None:
    training.processes[1].send_signal(signal.SIGSTOP)
    time.sleep(1)  # the step at hand
    before = num_steps(training)
    time.sleep(14)
    assert num_steps(training) <= before + 1, "the rank was not stopped"
    training.processes[1].send_signal(signal.SIGCONT)
    training.wait_until(lambda: num_steps(training) > before + 2)
    training.processes[1].kill()
    killed = time.monotonic()
    assert training.ends_with(1, -9).startswith("error: rank 1 on ")
    assert time.monotonic() - killed < 10
    assert "it was killed" in training.reasons[0]
    assert "Traceback" not in training.output


def test_the_first_ranks_death_is_told_by_the_next(training: Job) -> None:
    training.processes[0].kill()
    reason = training.ends_with(-9, 1)
    assert reason.startswith("error: rank 0 on ")
    assert reason in training.log(1).read_text()
    assert "Traceback" not in training.output


def test_an_error_between_broadcasts_leaves_nobody_waiting(tmp_path: Path) -> None:
    """Where the first rank sends a model weight by weight, and cannot."""
    with Job(tmp_path, [], module="tests.faults.broken_sender") as job:
        job.start()
        job.wait_until(lambda: all("joined" in job.log(rank).read_text() for rank in range(2)))
        reason = job.ends_with(1, 1)
    assert reason.startswith("error: rank 0 on ")
    assert "RuntimeError: The size of tensor" in reason
    assert job.output.count("Traceback") == 1, "of the rank that failed, and of it alone"
    assert "_receive_parts" in job.log(0).read_text()
