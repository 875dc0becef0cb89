"""Whole weights that train: the same view on masters and moments as the masked engine gives of its entries.

For `full` and `ffn`; checkpoints and export deal in entry ranges and need no branch by method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lape_ds.model.ffn import full_shape
from lape_ds.subnetwork.masked import EntryRange, scalar_state
from lape_ds.subnetwork.shards import Shard, find_shards


class DenseEntries:
    """All entries of some weights, wherever DeepSpeed keeps them.

    Args:
        model: The model; parameters not named are frozen.
        names: Of the weights that train.
        optimizer: Class of the torch optimizer made over them.
        **settings: Its keyword arguments.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        optimizer: type[torch.optim.Optimizer],
        **settings: Any,
    ) -> None:
        wanted = set(names)
        named = {name: param for name, param in model.named_parameters() if name in wanted}
        for name, param in model.named_parameters():
            param.requires_grad_(name in wanted)
        self._names = {id(param): name for name, param in named.items()}
        self._params = list(named.values())
        self.num_entries = sum(full_shape(param).numel() for param in self._params)
        self.optimizer = optimizer(self._params, **settings)
        self._group = self.optimizer.param_groups[0]

    def shards(self) -> list[Shard]:
        """This rank's parts; every one checked by value."""
        shards = find_shards([self._group], [self._params])
        for shard in shards:
            shard.verify()
        return shards

    def entry_ranges(self) -> Iterator[EntryRange]:
        """As `MaskedOptimizer.entry_ranges`; every entry of a weight counts."""
        for shard in self.shards():
            state = self.optimizer.state.get(shard.buffer, {})
            yield EntryRange(
                name=self._names[id(shard.parameter)],
                start=shard.start,
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
    def load_entries(
        self, read: Callable[[str, int, int], Mapping[str, Tensor]], scalars: Mapping[str, Tensor]
    ) -> None:
        """As `MaskedOptimizer.load_entries`."""
        for shard in self.shards():
            found = dict(read(self._names[id(shard.parameter)], shard.start, shard.start + shard.numel))
            shard.values().copy_(found.pop("master"))
            state = self.optimizer.state[shard.buffer]
            for key, value in found.items():
                if key not in state:
                    state[key] = torch.zeros_like(shard.buffer)
                state[key].view(-1).narrow(0, shard.buffer_start, shard.numel).copy_(value)
            state.update({key: value.clone() for key, value in scalars.items()})
