"""What the base model says of replayed text: the fixed point that `train.anchor.kl` holds training to.

Between the loaded base model and the chunked loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lape_ds.model.ffn import LogitHead, logit_head


@dataclass(frozen=True)
class BaseStates:
    """Hidden states of the base model for the replayed rows of a micro-batch.

    Attributes:
        hidden: [M, D], of M = replayed rows × T tokens.
        index: int64 [B, T]: where a token's state is in `hidden`; -1 where it is not replayed.
        head: Makes the base model's logits of them.
        weight: Of the divergence in the loss.
    """

    hidden: Tensor
    index: Tensor
    head: LogitHead
    weight: float


class BaseAnchor:
    """A frozen copy of the base model, whole on every rank.

    No `nn.Module`, and not part of one: DeepSpeed must neither partition it nor keep buffers for it.

    Args:
        base: As loaded, on the device where training computes; is set to eval and frozen.
        weight: Of KL(base || trained) per replayed token, against the negative log-likelihood of a token.
    """

    def __init__(self, base: PreTrainedModel, weight: float) -> None:
        self.base = base.eval().requires_grad_(False)
        self.weight = weight
        self._head = logit_head(base)

    @torch.no_grad()
    def states(self, input_ids: Tensor, replayed: Tensor) -> BaseStates:
        """Runs the base model on the replayed rows.

        Args:
            input_ids: int64 [B, T].
            replayed: int64 [n], the rows that are replay; at least one.
        """
        rows = input_ids.index_select(0, replayed)
        hidden = self.base.base_model(input_ids=rows, use_cache=False)[0].flatten(0, 1)
        index = torch.full_like(input_ids, -1)
        index[replayed] = torch.arange(rows.numel(), device=rows.device).view(rows.shape)
        return BaseStates(hidden, index, self._head, self.weight)
