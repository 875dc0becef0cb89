"""How far two bfloat16 tensors are apart."""

from __future__ import annotations

import torch
from torch import Tensor


def ulps_apart(left: Tensor, right: Tensor) -> int:
    """Largest distance in units of the last place, across zero too; bfloat16."""

    def ordered(tensor: Tensor) -> Tensor:
        bits = tensor.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return int((ordered(left) - ordered(right)).abs().max())
