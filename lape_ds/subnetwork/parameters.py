"""Whole parameters that train: the same view on masters and moments as the masked engine gives of its entries.

For every method but the masked engine: whole weights (`full`, `ffn`), the compact engine's slices, adapters. Checkpoints
and export deal in entry ranges and need no branch by method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lape_ds.model.ffn import full_shape
from lape_ds.subnetwork.anchor import L2Anchor
from lape_ds.subnetwork.masked import EntryRange, scalar_state
from lape_ds.subnetwork.shards import Shard, find_shards, stored_part


@dataclass(frozen=True)
class TrainedParameter:
    """A parameter that trains, and which entries of which weight it is.

    Its flattened entries are the weight's trained entries in row-major order, from `start` on: the order of the masked
    engine and of checkpoints.

    Attributes:
        parameter: Contiguous, as ZeRO demands.
        name: Under which checkpoints hold its entries: the weight's in `model.named_parameters()` before training.
        start: Which of the weight's trained entries comes first (not 0 only for the up half of a fused weight).
    """

    parameter: nn.Parameter
    name: str
    start: int = 0


class ParameterEntries:
    """All entries of some parameters, wherever DeepSpeed keeps them.

    Attributes:
        num_entries: Trained weights, over all ranks.
        num_added: Those among them that the base model does not have: slices and adapters.

    Args:
        trained: What trains; everything else in the model must be frozen.
        optimizer: Class of the torch optimizer made over them.
        added: The parameters were put into the model, beside its own.
        **settings: Its keyword arguments.
    """

    def __init__(
        self,
        trained: Sequence[TrainedParameter],
        optimizer: type[torch.optim.Optimizer],
        *,
        added: bool = False,
        **settings: Any,
    ) -> None:
        self._trained = {id(part.parameter): part for part in trained}
        self._params = [part.parameter for part in trained]
        self.num_entries = sum(full_shape(param).numel() for param in self._params)
        self.num_added = self.num_entries if added else 0
        self.optimizer = optimizer(self._params, **settings)
        self._group = self.optimizer.param_groups[0]

    def shards(self) -> list[Shard]:
        """This rank's parts; every one checked by value."""
        shards = find_shards([self._group], [self._params])
        for shard in shards:
            shard.verify()
        return shards

    def entry_ranges(self) -> Iterator[EntryRange]:
        """As `MaskedOptimizer.entry_ranges`; every entry of a parameter counts."""
        for shard in self.shards():
            state = self.optimizer.state.get(shard.buffer, {})
            part = self._trained[id(shard.parameter)]
            yield EntryRange(
                name=part.name,
                start=part.start + shard.start,
                masters=shard.values(),
                state={
                    key: value.view(-1).narrow(0, shard.buffer_start, shard.numel)
                    for key, value in state.items()
                    if torch.is_tensor(value) and value.dim()
                },
                replicated=shard.replicated,
            )

    def state_scalars(self) -> dict[str, Tensor]:
        """As `MaskedOptimizer.state_scalars`."""
        return scalar_state(self.optimizer)

    @torch.no_grad()
    def write_weights(self, read: Callable[[str, int, int], Tensor]) -> None:
        """As `MaskedOptimizer.write_weights`."""
        for part in self._trained.values():
            with stored_part(part.parameter) as (start, values):
                if len(values):  # the last ranks may hold padding only
                    first = part.start + start
                    values.copy_(read(part.name, first, first + len(values)))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What trains."""
        return self._params

    def anchor_to(self, anchor: L2Anchor) -> None:
        """As `MaskedOptimizer.anchor_to`."""
        starts: dict[int, Tensor] = {}
        for shard in self.shards():
            start = starts.setdefault(id(shard.buffer), shard.buffer.detach().clone())
            start.view(-1).narrow(0, shard.buffer_start, shard.numel).copy_(anchor.values(shard))

        def pull(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:  # under ZeRO-3 one sub-group at a time
                for buffer in group["params"]:
                    if id(buffer) in starts and buffer.grad is not None:
                        anchor.pull(buffer.data, starts[id(buffer)], group["lr"])

        self.optimizer.register_step_post_hook(pull)

    @torch.no_grad()
    def load_entries(
        self, read: Callable[[str, int, int], Mapping[str, Tensor]], scalars: Mapping[str, Tensor]
    ) -> None:
        """As `MaskedOptimizer.load_entries`."""
        for shard in self.shards():
            part = self._trained[id(shard.parameter)]
            start = part.start + shard.start
            found = dict(read(part.name, start, start + shard.numel))
            shard.values().copy_(found.pop("master"))
            state = self.optimizer.state[shard.buffer]
            for key, value in found.items():
                if key not in state:
                    state[key] = torch.zeros_like(shard.buffer)
                state[key].view(-1).narrow(0, shard.buffer_start, shard.numel).copy_(value)
            state.update({key: value.clone() for key, value in scalars.items()})
