"""The L2 anchor: what trains is pulled back to where it began.

Beside the engines; a retention switch of every method (the other one, KL on replayed text, is model/anchor.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lape_ds.subnetwork.shards import Shard, stored_part


class L2Anchor:
    """Copies of what trains as it was before training, and the pull back to them.

    After each optimizer step `w -= learning rate · strength · (w - w_start)`: decoupled from gradient, clipping and moments,
    as AdamW's weight decay is, which pulls to zero instead.

    Args:
        parameters: What trains, before a checkpoint is written into it and before `deepspeed.initialize`.
        strength: `train.anchor.l2`, at least 0.

    Source: arXiv 1802.01483 (L2-SP); decoupling as in arXiv 1711.05101.
    """

    @torch.no_grad()
    def __init__(self, parameters: Iterable[nn.Parameter], strength: float) -> None:
        self.strength = strength
        self._start: dict[int, tuple[int, Tensor]] = {}
        for parameter in parameters:
            with stored_part(parameter) as (begin, values):
                self._start[id(parameter)] = (begin, values.clone())

    def values(self, shard: Shard) -> Tensor:
        """The start of a part of a master, fp32 [numel], on the master's device."""
        begin, values = self._start[id(shard.parameter)]
        return values.narrow(0, shard.start - begin, shard.numel).to(shard.buffer.device, torch.float32)

    def forget(self) -> None:
        """Frees the copies, once the engines have taken what their rank needs."""
        self._start.clear()

    def pull(self, weights: Tensor, start: Tensor, learning_rate: float) -> None:
        """Moves fp32 `weights` towards `start`, in place."""
        weights.lerp_(start, min(1.0, learning_rate * self.strength))
