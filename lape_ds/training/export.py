"""From a run folder to a plain Hugging Face model folder.

After training, before evaluation. Needs neither DeepSpeed nor the ranks that trained: the base model is read, the
trained entries of a checkpoint are written into it, and what should not have moved is compared bit by bit.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lape_ds.errors import UserError
from lape_ds.model.loading import fingerprint, load_model, load_tokenizer, resolve_model, without_bars
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import load_recipe
from lape_ds.runlog import write_json
from lape_ds.subnetwork.entries import EntryMask, entry_masks
from lape_ds.training.checkpoint import CheckpointReader, pointed_to


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: The model folder.
        step: Of the checkpoint.
        num_neurons: That were trained; None where whole weights were.
        trained: Weights that were trained.
        changed: Weights that differ from the base, all of them among the trained ones.
        total: Weights of the model.
    """

    folder: Path
    step: int
    num_neurons: int | None
    trained: int
    changed: int
    total: int


def export_model(
    run_dir: Path, *, checkpoint: Literal["best", "last"] = "best", folder: Path | None = None
) -> Export:
    """Writes `run_dir/model` (or `folder`): weights, configuration and tokenizer, for `from_pretrained`.

    Args:
        run_dir: Of a training.
        checkpoint: The one with the lowest held-out bits per byte, or the last one. A run in which no step improved on the
            base has no best checkpoint.
        folder: Where to; replaced if it is there.

    Raises:
        UserError: No such run or checkpoint, or another base model.
        AssertionError: Something outside the trained entries differs from the base.
    """
    if not (run_dir / "run.json").exists():
        raise UserError(
            f"{run_dir} is not the folder of a training (it has no run.json); give output_dir/train/<run>"
        )
    recipe = load_recipe(str(run_dir), [])
    source = pointed_to(run_dir / "checkpoints", checkpoint)
    if source is None:
        raise UserError(
            f"{run_dir} has no {checkpoint} checkpoint: nothing was better than the base, or no step was kept yet; "
            "try --checkpoint last, or train on"
        )
    reader = CheckpointReader(source)
    base_folder = resolve_model(recipe.model.path, recipe.model.revision)
    if fingerprint(base_folder) != reader.state.base_fingerprint:
        raise UserError(
            f"{recipe.model.path} no longer holds the weights that {run_dir} was trained from; restore them"
        )
    model = load_model(base_folder, dtype=recipe.model.dtype, attn_implementation="sdpa")
    base = {name: param.detach().clone() for name, param in model.named_parameters()}
    neurons = _trained_neurons(run_dir)
    write_entries(model, reader, neurons)
    changed = count_changes(model, base, neurons)
    target = folder or run_dir / "model"
    _save(model, base_folder, target)
    total = sum(weight.numel() for weight in base.values())
    num_neurons = None if neurons is None else len(neurons)
    done = Export(target, reader.state.step, num_neurons, reader.state.num_entries, changed, total)
    write_json(target / "lape_ds_export.json", vars(done) | {"folder": str(target), "run": str(run_dir)})
    return done


def _trained_neurons(run_dir: Path) -> Tensor | None:
    path = run_dir / "neurons.safetensors"
    if not path.exists():
        return None
    found = NeuronSet.load(path)
    return found.union(*found.languages)


@torch.no_grad()
def write_entries(model: PreTrainedModel, checkpoint: CheckpointReader, neurons: Tensor | None) -> None:
    """Writes a checkpoint's masters into a model, rounded to its dtype.

    Args:
        model: The base, not partitioned.
        checkpoint: Of a training of this base.
        neurons: integer [n, 2] of the neurons that were trained; None where whole weights were.
    """
    masks = _masks(model, neurons)
    named = dict(model.named_parameters())
    for name in checkpoint.names:
        weight = named[name]
        if masks is None:
            values = checkpoint.read(name, 0, weight.numel())["master"]
            weight.copy_(values.view(weight.shape))
        else:
            mask = masks[name]
            values = checkpoint.read(name, 0, mask.num_entries)["master"].to(weight.dtype)
            (block,) = mask.blocks(0, weight.numel(), offset=0, device=weight.device)
            block.scatter(weight.view(-1), values)


def count_changes(model: PreTrainedModel, base: dict[str, Tensor], neurons: Tensor | None) -> int:
    """Counts the weights that differ from the base.

    Raises:
        AssertionError: One of them does not belong to the trained neurons.
    """
    masks = _masks(model, neurons)
    changed = 0
    for name, weight in model.named_parameters():
        differs = _bits(weight) != _bits(base[name])
        changed += int(differs.sum())
        if masks is not None:
            outside = differs.clone()
            if name in masks:
                outside.index_fill_(masks[name].axis, masks[name].index, False)
            assert not outside.any(), f"{name} differs from the base outside the subnetwork"
    return changed


def _masks(model: PreTrainedModel, neurons: Tensor | None) -> dict[str, EntryMask] | None:
    return None if neurons is None else entry_masks(model, neurons)


def _bits(weight: Tensor) -> Tensor:
    """The same bits as integers: -0.0 is not 0.0, and NaN equals itself."""
    return weight.detach().view({2: torch.int16, 4: torch.int32}[weight.element_size()])


def _save(model: PreTrainedModel, base_folder: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    with without_bars():
        model.save_pretrained(temporary)
    load_tokenizer(base_folder).save_pretrained(temporary)
    if target.exists():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(temporary, target)
