"""Writing a checkpoint, all ranks together. Its format is told in checkpoint.py."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lape_ds.distributed.ranks import by_first, gather, rank, together
from lape_ds.errors import Diverged, UserError
from lape_ds.subnetwork.methods import Trained
from lape_ds.training.checkpoint import SCHEMA_VERSION, CheckpointState
from lape_ds.training.checksums import file_seal, sealed
from lape_ds.training.run_folder import checkpoint_name
from lape_ds.writing import give_usual_mode, sync, told_if_unwritable, write_json

Seal = tuple[str, dict[str, Any]]  # a file's name, size and digest


def save_checkpoint(folder: Path, trained: Trained, state: CheckpointState) -> Path:
    """Writes `folder/step-N`, which must not be there. Collective: every rank must enter it.

    All of it is on the disk before it has its name, and the name is before this returns.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: A rank could not write; earlier checkpoints are as they were and nothing else is left behind.
        Diverged: A rank holds weights that are not finite; likewise.
    """
    target = folder / checkpoint_name(state.step)
    temporary = folder / f".{target.name}.tmp"
    try:
        by_first(lambda: _make_empty(temporary, target))
        seals = dict(gather(together(lambda: _write_rank(temporary, trained))))
        by_first(lambda: _finish(temporary, target, trained, state, seals))
    finally:
        if rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _make_empty(temporary: Path, target: Path) -> None:
    if target.exists():  # never replaced: there would be a moment with neither
        raise UserError(
            f"{target} appeared while this job trained: another one writes into this run; end one of them, then give the same "
            "command again"
        )
    with told_if_unwritable(f"the checkpoint {target}"):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)


def _write_rank(folder: Path, trained: Trained) -> Seal:
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
    path = folder / f"rank-{rank():05d}.safetensors"
    with told_if_unwritable(f"the checkpoint {path}"):
        _save(tensors, path)
        give_usual_mode(path)
        sync(path)
        # Read back: what the digest vouches for is the file, not what was meant to be in it.
        return path.name, file_seal(path)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # a full disk, told in its own type
        raise OSError(str(error)) from error


def _finish(
    temporary: Path, target: Path, trained: Trained, state: CheckpointState, seals: dict[str, dict[str, Any]]
) -> None:
    scalars = {key: float(value) for key, value in trained.state_scalars().items()}
    content = {"schema_version": SCHEMA_VERSION, **vars(state), "scalars": scalars, "files": seals}
    with told_if_unwritable(f"the checkpoint {target}"):
        write_json(temporary / "state.json", sealed(content))
        sync(temporary)
        os.replace(temporary, target)
        sync(target.parent)
