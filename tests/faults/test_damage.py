"""A damaged checkpoint is seen and told, the one before it is used, and the run ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lape_ds.training.checkpoint import open_checkpoint
from tests.faults.scheduler import Jobs, assert_same_run, contents

EVERY_STEP = [
    "train.checkpoint_every_steps=1",
    "train.keep_checkpoints=6",
    "train.gradient_accumulation_steps=1",
]


def truncate(folder: Path) -> None:
    path = folder / "rank-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def flip_one_bit(folder: Path) -> None:
    path = folder / "rank-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-101] ^= 4
    path.write_bytes(content)


def lose_a_file(folder: Path) -> None:
    (folder / "rank-00001.safetensors").unlink()


def change_the_state(folder: Path) -> None:
    path = folder / "state.json"
    text = path.read_text()
    assert '"step": 3' in text
    path.write_text(text.replace('"step": 3', '"step": 1'))


DAMAGE: dict[int, tuple[Callable[[Path], None], str]] = {
    6: (truncate, "rank-00001.safetensors has "),
    5: (flip_one_bit, "rank-00000.safetensors is not what was written (its checksum differs)"),
    4: (lose_a_file, "rank-00001.safetensors is missing"),
    3: (change_the_state, "state.json is not what was written"),
}


def test_the_last_whole_checkpoint_is_used(jobs: Jobs) -> None:
    """Two ranks; each of the four newest checkpoints is damaged in another way."""
    undisturbed = jobs.run("train.run_name=undamaged", *EVERY_STEP, world_size=2)
    run_dir = jobs.run("train.run_name=damaged", *EVERY_STEP, world_size=2)
    checkpoints = run_dir / "checkpoints"
    for step, (damage, _) in DAMAGE.items():
        damage(checkpoints / f"step-{step:08d}")
    job = jobs.start("train.run_name=damaged", *EVERY_STEP, world_size=2)
    assert job.end() == [0, 0], job.output()
    warnings = job.lines("warning:")
    assert len(warnings) == len(DAMAGE)
    for warning, (step, (_, reason)) in zip(warnings, DAMAGE.items(), strict=True):
        assert f"step-{step:08d} is damaged: {reason}" in warning
        assert warning.endswith("the checkpoint before it is used")
    assert len(job.lines("going on from step 2 of 6")) == 1
    assert_same_run(run_dir, undisturbed, steps=range(1, 7))
    names = {path.name for path in checkpoints.iterdir()}
    assert names == {f"step-{step:08d}" for step in range(1, 7)}, "what was set aside is gone"
    best = open_checkpoint(checkpoints, "best")
    assert best is not None
    assert best.state.best == {**(best.state.best or {}), "step": best.state.step}


def test_without_a_whole_checkpoint_nothing_is_touched(jobs: Jobs) -> None:
    run_dir = jobs.run("train.run_name=hopeless", "train.keep_checkpoints=1")
    for folder in (run_dir / "checkpoints").iterdir():
        flip_one_bit(folder)
    before = contents(run_dir)
    job = jobs.start("train.run_name=hopeless", "train.keep_checkpoints=1")
    assert job.end() == [2]
    (line,) = job.lines("error:")
    assert "no checkpoint is whole: " in line
    assert "step-00000006 is damaged: rank-00000.safetensors is not what was written" in line
    assert "restore one from a backup, or begin anew with train.resume=never" in line
    assert contents(run_dir) == before
