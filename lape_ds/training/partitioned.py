"""A model's weights for ZeRO-3: every rank reads its own part of each, none holds a whole model.

Between the skeleton (model/loading.py) and `deepspeed.initialize`, which finds the parameters partitioned already, as after
DeepSpeed's own `zero.Init`. Read in DeepSpeed 0.19.8 (runtime/zero/partition_parameters.py): rank r of n holds the elements
[r·P, (r+1)·P) of each flattened parameter, P = ceil(numel / n).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from lape_ds.distributed.ranks import by_first, device, rank, together, world_size
from lape_ds.errors import UserError
from lape_ds.model.loading import load_model
from lape_ds.model.weights import WeightFiles, checkpoint_files


def fill_partitioned(model: PreTrainedModel, folder: Path, config: dict[str, Any]) -> None:
    """Partitions a skeleton's parameters by DeepSpeed's rules and fills them with the folder's weights. Collective.

    On each rank at most one weight is whole at a time, and on the CPU only the pages of this rank's part are ever touched.
    Checkpoints that are not the model's weights one to one (transformers converts some) are loaded by the first rank alone,
    which then sends them weight by weight: one whole copy for the job.

    Args:
        model: Of `load_skeleton`, in the dtype of the run.
        folder: Its folder.
        config: DeepSpeed's, of the very run: it decides where the parts are kept (device, host, NVMe).

    Raises:
        UserError: On all ranks, if one of them cannot read its part.
    """
    for buffer in model.buffers():
        buffer.data = buffer.to(device())  # DeepSpeed moves none of a model that is partitioned already
    stored = together(lambda: _find(model, folder))
    reason = by_first(lambda: stored.reason)
    # With a module: only then DeepSpeed takes the linear layer that keeps no gathered weight for backward.
    zero = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=config)
    if reason is None:
        together(lambda: _read_parts(zero, model, stored))
        return
    if rank() == 0:
        print(f"{folder}: {reason}; rank 0 loads the whole model and sends it", file=sys.stderr)
    dtype = str(model.dtype).removeprefix("torch.")
    whole = together(
        lambda: load_model(folder, dtype=dtype, attn_implementation="eager") if rank() == 0 else None
    )
    _receive_parts(zero, model, whole)


@dataclass(frozen=True)
class _Stored:
    """Where the files hold the model's parameters and persistent buffers.

    Attributes:
        names: By the model's name, the name in the files.
        files: To read them from.
        reason: Why they cannot be read range by range; None if they can.
    """

    names: dict[str, str]
    files: WeightFiles | None
    reason: str | None


def _find(model: PreTrainedModel, folder: Path) -> _Stored:
    if any(path.suffix != ".safetensors" for path in checkpoint_files(folder)):
        return _Stored({}, None, "not safetensors")
    if any(isinstance(entry, WeightConverter) for entry in get_model_conversion_mapping(model)):
        return _Stored({}, None, f"transformers converts weights of model type {model.config.model_type}")
    files = WeightFiles(folder)
    tensors = model.state_dict(keep_vars=True)
    aliases: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        aliases.setdefault(id(tensor), []).append(name)
    names: dict[str, str] = {}
    for own, *tied in aliases.values():
        found = [name for name in (own, *tied) if name in files.shapes]
        if len(found) != 1:
            what = f"no {own}" if not found else f"{found[0]} and {found[1]}, which the model ties"
            return _Stored({}, None, f"the files hold {what}")
        if files.shapes[found[0]] != tensors[own].shape:
            return _Stored({}, None, f"{found[0]} has another shape than config.json gives it")
        names[own] = found[0]
    return _Stored(names, files, None)


def _read_parts(zero: deepspeed.zero.Init, model: PreTrainedModel, stored: _Stored) -> None:
    if stored.files is None:
        raise UserError(
            f"{model.config.name_or_path}: {stored.reason}, but not where the first rank reads; copy the model again"
        )
    parameters = dict(model.named_parameters())
    room = _room(model)
    for name, source in stored.names.items():
        if name not in parameters:
            buffer = model.get_buffer(name)
            buffer.copy_(stored.files.read(source, 0, buffer.numel()).view(buffer.shape))
            continue
        whole = _whole(room, parameters[name])
        start, stop = _wanted(zero, whole)
        if start < stop:
            whole.view(-1)[start:stop].copy_(stored.files.read(source, start, stop))
        _partition(zero, parameters[name], whole)


def _receive_parts(zero: deepspeed.zero.Init, model: PreTrainedModel, whole: PreTrainedModel | None) -> None:
    """From the first rank, which has the whole model. Collective."""
    _untie(model, by_first(lambda: [] if whole is None else list(dict(whole.named_parameters()))))
    values = {} if whole is None else whole.state_dict()
    parameters = dict(model.named_parameters())
    room = _room(model)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name not in parameters and isinstance(tensor, nn.Parameter):  # tied to one that has come already
            continue
        received = _whole(room, tensor)
        if rank() == 0:
            received.copy_(values[name])
        dist.broadcast(received.view(-1).view(torch.uint8), src=0)
        if name not in parameters:
            tensor.copy_(received)
            continue
        _partition(zero, parameters[name], received)


def _untie(model: PreTrainedModel, names: list[str]) -> None:
    """Gives the model a parameter of its own wherever the loaded one has it: transformers parts tied ones that differ."""
    for name in set(names) - set(dict(model.named_parameters())):
        module, _, leaf = name.rpartition(".")
        owner = model.get_submodule(module)
        owner.register_parameter(leaf, nn.Parameter(torch.empty_like(owner.get_parameter(leaf))))


def _room(model: PreTrainedModel) -> Tensor:
    """Bytes for one weight at a time, the same for all: a fresh piece for each would leave holes behind."""
    largest = max(tensor.nbytes for tensor in model.state_dict().values())
    return torch.empty(largest, dtype=torch.uint8, device=device())


def _whole(room: Tensor, like: Tensor) -> Tensor:
    """A tensor as `like` in that room."""
    return room[: like.nbytes].view(like.dtype).view(like.shape)


def _wanted(zero: deepspeed.zero.Init, whole: Tensor) -> tuple[int, int]:
    """Which elements of a flattened weight this rank keeps."""
    numel = whole.numel()
    if zero.zero_param_process_group is not None:  # hpZeRO keeps a second, larger part besides
        return 0, numel
    part = -(-numel // world_size())
    return min(numel, rank() * part), min(numel, (rank() + 1) * part)


def _partition(zero: deepspeed.zero.Init, param: nn.Parameter, whole: Tensor) -> None:
    """Makes a parameter of the meta device a partitioned one; of `whole`, only what `_wanted` names need be right.

    What `zero.Init` does to a parameter, but for its broadcast of the whole from the first rank.
    """
    # The same object: modules and ties keep it. `.data`: parameters that share one version counter would make autograd take a
    # write into one for a write into all.
    torch.utils.swap_tensors(param, nn.Parameter(whole.data))
    zero._convert_to_deepspeed_param(param)
    param.partition()  # type: ignore[attr-defined]
