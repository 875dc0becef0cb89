"""Writing a checkpoint, all ranks together. Its format is told in checkpoint.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lape_ds.errors import Diverged, UserError
from lape_ds.subnetwork.methods import Trained
from lape_ds.training.checkpoint import SCHEMA_VERSION, CheckpointState, checkpoint_name
from lape_ds.training.ranks import by_first, rank, together
from lape_ds.writing import write_json


def save_checkpoint(folder: Path, trained: Trained, state: CheckpointState) -> Path:
    """Writes `folder/step-N`, over one that is there. Collective: every rank must enter it.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: A rank could not write; earlier checkpoints are as they were.
        Diverged: A rank holds weights that are not finite; likewise.
    """
    target = folder / checkpoint_name(state.step)
    temporary = folder / f".{target.name}.tmp"
    by_first(lambda: _make_empty(temporary))
    together(lambda: _write_rank(temporary, trained))
    by_first(lambda: _finish(temporary, target, trained, state))
    return target


def _make_empty(folder: Path) -> None:
    with _told(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


def _write_rank(folder: Path, trained: Trained) -> None:
    tensors: dict[str, Tensor] = {}
    for held in trained.entry_ranges():
        if not held.masters.isfinite().all():
            raise Diverged(
                f"{held.name} is no longer finite: training has diverged, no checkpoint was written; go on with a lower "
                "train.optimizer.learning_rate and another train.run_name"
            )
        if held.replicated and rank() != 0:
            continue
        for key, value in {"master": held.masters, **held.state}.items():
            tensors[f"{key}|{held.name}|{held.start}"] = value.cpu().contiguous().clone()
    with _told(folder):
        save_file(tensors, folder / f"rank-{rank():05d}.safetensors")


def _finish(temporary: Path, target: Path, trained: Trained, state: CheckpointState) -> None:
    scalars = {key: float(value) for key, value in trained.state_scalars().items()}
    with _told(temporary):
        write_json(
            temporary / "state.json", {"schema_version": SCHEMA_VERSION, **vars(state), "scalars": scalars}
        )
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Turns a failed write into one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the checkpoint {folder.parent}: {error}; make room or set another output_dir, then give the same "
            "command again: earlier checkpoints are as they were"
        ) from error
