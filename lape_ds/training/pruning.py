"""Which checkpoints are kept.

Beside saving.py; the first rank prunes after each checkpoint that is whole and on the disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from lape_ds.training.checkpoint import DamagedCheckpoint, read_state
from lape_ds.training.run_folder import checkpoint_name, checkpoints_in

_ASIDE = "damaged-"


def prune(folder: Path, *, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints and those that one of them calls the best so far.

    If the newest turns out to be damaged, the one before it is there, and so is what that one calls the best.

    Args:
        folder: Of a run's checkpoints; temporary folders of killed runs and damaged ones set aside go too.
        keep: At least 1.
    """
    newest = checkpoints_in(folder)[:keep]
    kept = {path.name for path in newest} | {name for path in newest if (name := _best_of(path)) is not None}
    for old in checkpoints_in(folder):
        if old.name not in kept:
            # Out of sight in one step: half of a checkpoint must not look like a damaged one.
            os.replace(old, folder / f".{old.name}.{os.getpid()}.old")
    for gone in [*folder.glob(".step-*"), *folder.glob(f"{_ASIDE}*")]:
        shutil.rmtree(gone, ignore_errors=True)  # what a network filesystem still holds goes the next time


def set_aside(damaged: Sequence[Path]) -> None:
    """Renames damaged checkpoints, so that they are neither found nor counted; they go when the next one is written."""
    for path in damaged:
        os.replace(path, _free_name(path))


def _free_name(path: Path) -> Path:
    aside = path.with_name(_ASIDE + path.name)
    shutil.rmtree(aside, ignore_errors=True)  # of the same step, damaged before
    return aside


def _best_of(path: Path) -> str | None:
    try:
        best = read_state(path)["best"]
    except DamagedCheckpoint:
        return None
    return None if best is None else checkpoint_name(int(best["step"]))
