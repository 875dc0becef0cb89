"""From a run folder to a plain Hugging Face model folder.

After training, before evaluation. Needs neither DeepSpeed nor the ranks that trained: the base model is read, the
trained entries of a checkpoint are written into it, and what should not have moved is compared bit by bit.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from lape_ds.errors import UserError
from lape_ds.model.loading import fingerprint, load_model, load_tokenizer, recipe_model, without_bars
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import Recipe, TrainSection, load_recipe
from lape_ds.subnetwork.adapters import ADAPTER_METHODS, adapted_weights, add_adapter, merge_adapter
from lape_ds.subnetwork.entries import Mask, bits, entry_masks, write_part
from lape_ds.training.checkpoint import LORA_R, CheckpointReader, open_checkpoint
from lape_ds.training.run_folder import EXPORT_MARKER
from lape_ds.writing import whole_folder, write_json


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        folder: The model folder.
        step: Of the checkpoint.
        checkpoint: Its digest: which checkpoint of that step.
        total_steps: Of the whole run, which may not be finished.
        num_neurons: That were trained; None where whole weights were.
        trained: Weights that were trained, those of an adapter counted as they were before merging.
        changed: Weights that differ from the base, all of them trained ones or of a weight that took an adapter.
        total: Weights of the model.
        merged: Whether an adapter was trained, which is part of the weights now.
    """

    folder: Path
    step: int
    checkpoint: str
    total_steps: int
    num_neurons: int | None
    trained: int
    changed: int
    total: int
    merged: bool

    def __str__(self) -> str:
        if self.merged:
            what = f"an adapter of {self.trained:,} weights was merged into the model and changed {self.changed:,} of"
            where = "it had no part"
        else:
            what = f"{self.trained:,} weights were trained and {self.changed:,} changed, of"
            where = "nothing was trained"
        when = f"step {self.step:,} of {self.total_steps:,}"
        return f"{self.folder}: {when}; {what} {self.total:,}; where {where}, every bit equals the base"


def export_model(
    run_dir: Path, *, checkpoint: Literal["best", "last"] = "best", folder: Path | None = None
) -> Export:
    """Writes `run_dir/model` (or `folder`): weights, configuration and tokenizer, for `from_pretrained`.

    Args:
        run_dir: Of a training.
        checkpoint: The one with the lowest held-out bits per byte, or the last one. A run in which no step improved on the
            base has no best checkpoint; of a run that measured nothing it is the last one.
        folder: Where to; an earlier export there is replaced, anything else is refused.

    Raises:
        UserError: No such run or checkpoint, a damaged one, or another base model.
        RuntimeError: Something outside the trained entries differs from the base.
    """
    run = open_run(run_dir, checkpoint)
    recipe, reader, base_folder, neurons = run.recipe, run.reader, run.base_folder, run.neurons
    model = write_entries(run.load_base(), reader, recipe.train, neurons)
    target = folder or run_dir / "model"
    with whole_folder(target, marker_files=(EXPORT_MARKER,)) as temporary:
        write_model(model, temporary, tokenizer_folder=base_folder)
        del model  # one whole model in memory at a time
        base = run.load_base()
        done = Export(
            folder=target,
            step=reader.state.step,
            checkpoint=reader.digest,
            total_steps=int(reader.state.identity["steps"]),
            num_neurons=None if neurons is None else len(neurons),
            trained=reader.state.num_entries,
            changed=count_changes(temporary, base, neurons, whole=_whole_weights(base, reader, recipe)),
            total=sum(weight.numel() for weight in base.parameters()),
            merged=recipe.train.method in ADAPTER_METHODS,
        )
        write_json(temporary / EXPORT_MARKER, vars(done) | {"folder": str(target), "run": str(run_dir)})
    return done


def write_model(model: PreTrainedModel, folder: Path, *, tokenizer_folder: Path) -> None:
    """Writes weights, configuration and tokenizer for `from_pretrained`."""
    with without_bars():
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # a full disk, told in its own type
            raise OSError(f"{folder} cannot be written: {error}") from error
    load_tokenizer(tokenizer_folder).save_pretrained(folder)


@dataclass(frozen=True)
class TrainedRun:
    """A checkpoint of a run, and what it takes to write it into the base model.

    Attributes:
        recipe: Of the run.
        reader: Of the checkpoint.
        base_folder: Of the model that it was trained from, whose weights are still those.
        neurons: int32 [n, 2] that were trained; None where none were.
    """

    recipe: Recipe
    reader: CheckpointReader
    base_folder: Path
    neurons: Tensor | None

    def load_base(self) -> PreTrainedModel:
        """The base model in the dtype of the training, on the CPU."""
        return load_model(self.base_folder, dtype=self.recipe.model.dtype, attn_implementation="sdpa")


def open_run(run_dir: Path, checkpoint: Literal["best", "last"]) -> TrainedRun:
    """Opens a run's checkpoint and makes sure that its base model is there as it was.

    Raises:
        UserError: No such run or checkpoint, a damaged one, or another base model.
    """
    if not (run_dir / "run.json").exists():
        raise UserError(
            f"{run_dir} is not the folder of a training (it has no run.json); give output_dir/train/<run>"
        )
    recipe = load_recipe(str(run_dir), [])
    reader = open_checkpoint(run_dir / "checkpoints", checkpoint)
    if reader is None:
        raise UserError(
            f"{run_dir} has no {checkpoint} checkpoint: nothing was better than the base, or no step was kept yet; "
            "try --checkpoint last, or train on"
        )
    base_folder = recipe_model(recipe)
    if fingerprint(base_folder) != reader.state.base_fingerprint:
        raise UserError(
            f"{recipe.model.path} no longer holds the weights that {run_dir} was trained from; restore them"
        )
    return TrainedRun(recipe, reader, base_folder, _trained_neurons(run_dir))


def _trained_neurons(run_dir: Path) -> Tensor | None:
    path = run_dir / "neurons.safetensors"
    if not path.exists():
        return None
    found = NeuronSet.load(path)
    return found.union(*found.languages)


@torch.no_grad()
def write_entries(
    model: PreTrainedModel, checkpoint: CheckpointReader, train: TrainSection, neurons: Tensor | None
) -> PreTrainedModel:
    """Writes a checkpoint's masters into a model, rounded to its dtype; adapters are merged into its weights.

    Args:
        model: The base, not partitioned.
        checkpoint: Of a training of this base.
        train: The recipe's section.
        neurons: integer [n, 2] of the neurons that were trained; None where none were.
    """
    adapted = None
    if train.method in ADAPTER_METHODS:
        lora = train.lora.model_copy(update={"r": int(checkpoint.state.identity.get(LORA_R, 0))})
        adapted = add_adapter(model, train.model_copy(update={"lora": lora}))
    masks = _masks(model, neurons)
    named = dict(model.named_parameters())
    for name in checkpoint.names:
        values = named[name].view(-1)
        if masks is None:
            values.copy_(checkpoint.read_key("master", name, 0, len(values)))
        else:
            write_part(masks[name], values, 0, partial(checkpoint.read_key, "master", name))
    return model if adapted is None else merge_adapter(adapted)


def _whole_weights(base: PreTrainedModel, checkpoint: CheckpointReader, recipe: Recipe) -> set[str]:
    """Weights of which every entry may have changed: those that trained, or into which an adapter was merged."""
    if recipe.train.method in ADAPTER_METHODS:
        return adapted_weights(base, recipe.train)
    return set(checkpoint.names)


def count_changes(
    folder: Path, base: PreTrainedModel, neurons: Tensor | None, *, whole: AbstractSet[str] = frozenset()
) -> int:
    """Compares the written files with the base model, bit by bit; counts the weights that differ.

    Args:
        folder: As `save_pretrained` wrote it.
        base: In the dtype of the training.
        neurons: That were trained; None where whole weights were.
        whole: Names of weights that may differ in every entry; of no account with neurons.

    Raises:
        RuntimeError: One that differs did not train, or one is missing.
    """
    masks = _masks(base, neurons)
    written = {name: path for path in folder.glob("*.safetensors") for name in _tensor_names(path)}
    changed = 0
    for name, weight in base.named_parameters():
        may_differ = torch.full(weight.shape, masks is None and name in whole)
        if masks is not None and name in masks:
            may_differ = masks[name].keep_only(~may_differ)
        allowed = _as_written(base, name, may_differ)
        for written_name, expected in _as_written(base, name, weight.detach()).items():
            if written_name not in written:
                raise RuntimeError(f"the export lacks {written_name}")
            with safe_open(written[written_name], framework="pt") as file:
                differs = bits(file.get_tensor(written_name)) != bits(expected)
            changed += int(differs.sum())
            if (differs & ~allowed[written_name]).any():
                raise RuntimeError(
                    f"{written_name} differs from the base where nothing was trained; nothing was exported"
                )
    return changed


def _as_written(model: PreTrainedModel, name: str, tensor: Tensor) -> dict[str, Tensor]:
    """What `save_pretrained` makes of one parameter: it splits a mixture's experts, as the published files have them."""
    return revert_weight_conversion(model, {name: tensor})


def _tensor_names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _masks(model: PreTrainedModel, neurons: Tensor | None) -> dict[str, Mask] | None:
    return None if neurons is None else entry_masks(model, neurons)
