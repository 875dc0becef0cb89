"""A disk that is full or read-only, also in the middle: one line, and the last good state as it was."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from lape_ds.recipe import load_recipe
from lape_ds.training.checkpoint import open_checkpoint
from tests.faults.scheduler import Jobs, assert_same_run, contents

# Whole weights: 0.7 MB a checkpoint. The text is packed elsewhere, once.
FULL = ["train.method=full", "train.max_steps=40", "train.epochs=9", "train.checkpoint_every_steps=20"]
FULL += ["train.heldout.every_steps=40"]


@pytest.fixture
def cached(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    return [*FULL, f"corpus.cache_dir={tmp_path}/packed", f"train.run_name={request.node.name}"]


def fill(path: Path) -> None:
    """To the last page."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def fails_at_the_next_checkpoint(
    jobs: Jobs,
    arguments: Sequence[str],
    reason: str,
    *,
    largest_file: int | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> None:
    """With an earlier one there, which is still whole afterwards, alone."""
    folder = load_recipe(str(jobs.recipe), list(arguments)).run_dir / "checkpoints"
    before = contents(folder)
    job = jobs.start(*arguments, largest_file=largest_file)
    job.wait_for(lambda: bool(job.lines("going on from")))
    meanwhile()  # before the start it would be the preflight that refuses
    assert job.end() == [2], job.output()
    (line,) = job.lines("error:")
    assert "cannot write the checkpoint " in line
    assert reason in line
    assert "make room or mend the folder, then give the same command again" in line
    assert contents(folder) == before
    assert open_checkpoint(folder, "last") is not None
    assert all(path.name.startswith("step-") for path in folder.iterdir()), "nothing half-written is left"


def test_disk_full_while_a_checkpoint_is_written(jobs: Jobs, cached: list[str], small_disk: Path) -> None:
    undisturbed = jobs.run(*cached)
    cached = [*cached, f"output_dir={small_disk}"]
    run_dir = jobs.stop_after(2, *cached)
    filler = small_disk / "filler"

    def nearly_fill() -> None:
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 200_000))

    fails_at_the_next_checkpoint(jobs, cached, "No space left on device", meanwhile=nearly_fill)
    filler.unlink()
    assert jobs.run(*cached) == run_dir
    assert_same_run(run_dir, undisturbed, steps=range(1, 41))


def test_file_too_large_for_the_user(jobs: Jobs, cached: list[str]) -> None:
    """The same with a limit on a process's files, which needs no mount."""
    undisturbed = jobs.run(*cached, "train.run_name=unlimited")
    run_dir = jobs.stop_after(2, *cached)
    fails_at_the_next_checkpoint(jobs, cached, "File too large", largest_file=300_000)
    jobs.run(*cached)
    last = "checkpoints/step-00000040"
    assert contents(run_dir / last) == contents(undisturbed / last)


def test_disk_full_at_a_line_of_metrics(jobs: Jobs, cached: list[str], small_disk: Path) -> None:
    """No room for a byte: all ranks stop, and after room is made no line is missing or half there."""
    longer = ["train.gradient_accumulation_steps=1", "train.max_steps=120", "train.epochs=30"]
    cached = [*cached, *longer, "train.heldout.every_steps=120", "train.checkpoint_every_steps=60"]
    undisturbed = jobs.run(*cached, world_size=2)
    cached = [*cached, f"output_dir={small_disk}"]
    job = jobs.start(*cached, world_size=2)
    job.wait_for(lambda: (job.run_dir / "checkpoints" / "step-00000060").exists())
    filler = small_disk / "filler"
    fill(filler)
    assert job.end() == [2, 2], job.output()
    assert all("No space left on device" in line for line in job.lines("error:"))
    assert f"cannot write {job.run_dir}/metrics.jsonl" in job.lines("error:")[0]
    filler.unlink()
    run_dir = jobs.run(*cached, world_size=2)
    assert_same_run(run_dir, undisturbed, steps=range(1, 121))


def test_read_only_disk_is_told_before_training(jobs: Jobs, cached: list[str], small_disk: Path) -> None:
    cached = [*cached, f"output_dir={small_disk}"]
    run_dir = jobs.stop_after(2, *cached)
    before = contents(run_dir)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    job = jobs.start(*cached)
    assert job.end() == [2], job.output()
    (line,) = job.lines("error:")
    assert "is read-only for this user on this machine" in line
    assert str(run_dir) in line
    assert not job.lines("going on from")
    assert contents(run_dir) == before
