"""Where DeepSpeed keeps the fp32 masters of each parameter on this rank.

Between the engines and DeepSpeed: the masked optimizer and the checkpoints both ask here. DeepSpeed replaces the
parameters of an optimizer by its own buffers, differently in every ZeRO stage; none of this is a public interface, so
every place found is checked by value (`verify`) before anything is written through it. Read in DeepSpeed 0.19.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum
from torch import Tensor, nn

from lape_ds.errors import UserError
from lape_ds.model.ffn import full_shape
from lape_ds.subnetwork.entries import bits


@dataclass(frozen=True)
class Shard:
    """A contiguous part of one parameter's fp32 master on this rank.

    Attributes:
        parameter: The model's parameter.
        buffer: The tensor that the optimizer steps: flat under ZeRO 1-3, the parameter's own shape under stage 0.
        buffer_start: Where the part begins in the flattened `buffer`.
        start: Where it begins in the flattened parameter.
        numel: Its length.
        replicated: Every rank holds the same part (stage 0).
    """

    parameter: nn.Parameter
    buffer: Tensor
    buffer_start: int
    start: int
    numel: int
    replicated: bool

    def values(self) -> Tensor:
        """The fp32 masters of this part, a view [numel]."""
        return self.buffer.detach().view(-1).narrow(0, self.buffer_start, self.numel)

    def verify(self) -> None:
        """Makes sure that these masters are this part of the parameter, to the bit.

        True after set-up and after every step (DeepSpeed copies masters to weights). A wrong map, as
        `round_robin_gradients` would give, shows here and not as a silently damaged model.

        Raises:
            RuntimeError: They are not.
        """
        stored = getattr(self.parameter, "ds_tensor", None)
        whole = (
            self.parameter.detach().view(-1).narrow(0, self.start, self.numel) if stored is None else stored
        )
        weights = whole[: self.numel]
        if weights.is_meta:  # a memory plan: there are no values
            return
        masters = self.values().to(device=weights.device, dtype=weights.dtype)
        if not torch.equal(bits(weights), bits(masters)):
            raise RuntimeError(
                "DeepSpeed does not keep its masters where lape-ds looks for them; nothing was written. Known to work: "
                "DeepSpeed 0.19.8; please report version and configuration"
            )


@contextmanager
def stored_part(parameter: nn.Parameter) -> Iterator[tuple[int, Tensor]]:
    """What this rank holds of a parameter before `deepspeed.initialize`, to be written in place.

    Yields:
        Where the part begins in the flattened parameter, and its elements [n]: all of them, or this rank's where `zero.Init`
        has partitioned it (n may be 0).

    Raises:
        UserError: Another copy would not follow.
    """
    stored: Any = getattr(parameter, "ds_tensor", None)
    if stored is None:
        yield 0, parameter.detach().view(-1)
        return
    if getattr(parameter, "ds_secondary_tensor", None) is not None:
        raise UserError(
            "a run under zero_optimization.zero_hpz_partition_size, which keeps a second copy of the weights, cannot go on with "
            "whole weights that train; remove it, or take train.engine=compact"
        )
    swapped = stored.final_location == OffloadDeviceEnum.nvme
    if swapped:
        parameter.nvme_swapper.swap_in([parameter], async_op=False)  # type: ignore[attr-defined]
    numel = full_shape(parameter).numel()
    start = min(numel, dist.get_rank(parameter.ds_process_group) * stored.ds_numel)  # type: ignore[attr-defined]
    yield start, stored.data[: numel - start]
    if swapped:
        parameter.nvme_swapper.swap_out_and_release([parameter])  # type: ignore[attr-defined]


def find_shards(
    groups: Sequence[dict[str, Any]], parameters: Sequence[Sequence[nn.Parameter]]
) -> list[Shard]:
    """Finds every part of every parameter that this rank's optimizer steps.

    Args:
        groups: The optimizer's own `param_groups`, as DeepSpeed left them.
        parameters: The model's parameters of each group, in the order given to the optimizer.
    """
    return [
        shard
        for group, params in zip(groups, parameters, strict=True)
        for shard in _group_shards(group, params)
    ]


def _group_shards(group: dict[str, Any], params: Sequence[nn.Parameter]) -> Iterator[Shard]:
    if hasattr(params[0], "_z3_optimizer"):
        yield from _stage3_shards(params)
    elif hasattr(params[0], "_hp_mapping"):
        (partition,) = group["params"]
        yield from _partition_shards(partition, params)
    else:  # stage 0: the parameters themselves (fp32), or a copy of each in the same order (bf16)
        for param, master in zip(params, group["params"], strict=True):
            yield Shard(param, master, 0, 0, master.numel(), replicated=True)


def _partition_shards(partition: Tensor, params: Sequence[nn.Parameter]) -> Iterator[Shard]:
    """ZeRO 1 and 2 (and BF16_Optimizer): one flat partition per group and rank."""
    for param in params:
        mapping: Any = param._hp_mapping  # type: ignore[attr-defined]
        if mapping is not None:  # None where this rank holds nothing of it
            master, weight = mapping.hp_fragment_address, mapping.lp_fragment_address
            yield Shard(param, partition, master.start, weight.start, weight.numel, replicated=False)


def _stage3_shards(params: Sequence[nn.Parameter]) -> Iterator[Shard]:
    """ZeRO 3: every parameter is padded and split by itself; the parts lie in flat sub-groups."""
    zero: Any = params[0]._z3_optimizer  # type: ignore[attr-defined]
    wanted = {id(param) for param in params}
    for buffer, sub_group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        offset = 0
        for param in sub_group:
            part = param.partition_numel()
            if id(param) in wanted:
                start = dist.get_rank(param.ds_process_group) * part
                numel = min(part, full_shape(param).numel() - start)  # the last ranks may hold padding only
                if numel > 0:
                    yield Shard(param, buffer, offset, start, numel, replicated=False)
            offset += part
