"""Writing a checkpoint, all ranks together. Its format is told in checkpoint.py."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from lape_ds.runlog import write_json
from lape_ds.subnetwork.methods import Trained
from lape_ds.training.checkpoint import SCHEMA_VERSION, CheckpointState
from lape_ds.training.ranks import rank, together


def save_checkpoint(folder: Path, trained: Trained, state: CheckpointState) -> Path:
    """Writes `folder/step-N`. Collective: every rank must enter it.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: On every rank, if one could not write.
    """
    target = folder / f"step-{state.step:08d}"
    temporary = folder / f".{target.name}.tmp"
    if rank() == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    together(lambda: _write_rank(temporary, trained))
    if rank() == 0:
        scalars = {key: float(value) for key, value in trained.state_scalars().items()}
        content = {"schema_version": SCHEMA_VERSION, **vars(state), "scalars": scalars}
        write_json(temporary / "state.json", content)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
    dist.barrier()
    return target


def _write_rank(folder: Path, trained: Trained) -> None:
    tensors: dict[str, Tensor] = {}
    for held in trained.entry_ranges():
        if held.replicated and rank() != 0:
            continue
        for key, value in {"master": held.masters, **held.state}.items():
            tensors[f"{key}|{held.name}|{held.start}"] = value.cpu().contiguous().clone()
    save_file(tensors, folder / f"rank-{rank():05d}.safetensors")
