"""Ranks are killed (SIGKILL) at random moments, also while a checkpoint is written: the same command always goes on, and the
run ends with the bits of an undisturbed one.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lape_ds.training.export import export_model
from tests.faults.scheduler import Job, Jobs, assert_same_run, last_step

WORLD_SIZE = 2
STEPS_PER_KILL = 12
SECONDS_OF_SET_UP = 2.0


def settings(num_steps: int) -> list[str]:
    return [
        f"train.max_steps={num_steps}",
        "train.epochs=999",
        "train.gradient_accumulation_steps=1",
        "train.checkpoint_every_steps=4",
        "train.heldout.every_steps=10",
    ]


def wait_for_moment(job: Job, kind: str, step: int, rng: random.Random) -> None:
    """Until the moment to kill has come: shortly after `step`, but for `set-up`."""
    if kind == "set-up":
        moment = time.monotonic() + rng.uniform(0, SECONDS_OF_SET_UP)
        job.wait_for(lambda: time.monotonic() >= moment or last_step(job.run_dir) >= step)
        return
    job.wait_for(lambda: last_step(job.run_dir) >= step)
    if kind == "write":
        checkpoints = job.run_dir / "checkpoints"
        job.wait_for(lambda: any(checkpoints.glob(".step-*.tmp")), every=0.0005)
    time.sleep(rng.uniform(0, 0.02))


def kill_again_and_again(jobs: Jobs, arguments: list[str], kinds: list[str]) -> tuple[Path, int]:
    """One kill of each kind in turn, then to the end; the run folder, and how often a checkpoint was torn."""
    rng = random.Random(0)
    torn = 0
    for number, kind in enumerate(kinds):
        job = jobs.start(*arguments, world_size=WORLD_SIZE)
        wait_for_moment(job, kind, (number + 1) * STEPS_PER_KILL - 8, rng)
        assert all(rank.poll() is None for rank in job.ranks), job.output()
        job.kill(rng.randrange(WORLD_SIZE))
        assert job.ranks[0].code != 0
        torn += any((job.run_dir / "checkpoints").glob(".step-*.tmp"))
    return jobs.run(*arguments, world_size=WORLD_SIZE), torn


def assert_unharmed(jobs: Jobs, kinds: list[str]) -> int:
    num_steps = (len(kinds) + 1) * STEPS_PER_KILL
    own = settings(num_steps)
    undisturbed = jobs.run(f"train.run_name=undisturbed-{num_steps}", *own, world_size=WORLD_SIZE)
    run_dir, torn = kill_again_and_again(jobs, [f"train.run_name=killed-{num_steps}", *own], kinds)
    assert_same_run(run_dir, undisturbed, steps=range(1, num_steps + 1))
    weights, expected = (
        load_file(export_model(folder, checkpoint="last").folder / "model.safetensors")
        for folder in (run_dir, undisturbed)
    )
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in weights.items())
    left = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert left == {path.name for path in (undisturbed / "checkpoints").iterdir()}
    return torn


def test_three_kills(jobs: Jobs) -> None:
    assert_unharmed(jobs, ["step", "write", "set-up"])


@pytest.mark.long
def test_thirty_kills(jobs: Jobs) -> None:
    kinds = ["write"] * 14 + ["step"] * 10 + ["set-up"] * 6
    random.Random(1).shuffle(kinds)
    torn = assert_unharmed(jobs, kinds)
    assert torn >= 3, "the kills aimed at the writing of a checkpoint hit none"
