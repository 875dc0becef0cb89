"""How far an optimizer step moves the trained weights: `train.log_update_norms`.

Beside the loop. Between steps a copy of this rank's fp32 masters is kept: 4 bytes for each trained weight, divided over the
ranks as ZeRO divides the masters themselves, and where they are (on the host with `deepspeed.offload_optimizer: cpu`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lape_ds.distributed.ranks import device, rank, sum_over_ranks
from lape_ds.subnetwork.methods import Trained


class UpdateNorms:
    """Measures each step against the masters before it.

    Args:
        trained: After `deepspeed.initialize`, with a checkpoint's masters loaded.
    """

    @torch.no_grad()
    def __init__(self, trained: Trained) -> None:
        self._trained = trained
        self._before = [masters.clone() for masters in self._masters()]

    def _masters(self) -> list[Tensor]:
        """This rank's parts of the trained weights, fp32; of what every rank holds whole (stage 0), the first one's count."""
        held = self._trained.entry_ranges()
        return [part.masters for part in held if rank() == 0 or not part.replicated]

    @torch.no_grad()
    def after_step(self) -> dict[str, float]:
        """The step just taken. Collective.

        Returns:
            `update_norm`, the L2 norm of the change of all trained weights (also by weight decay and an L2 anchor), and
            `relative_update_norm`, the same divided by the L2 norm of these weights before the step (not of weights all 0).
        """
        squares = torch.zeros(2, dtype=torch.float64, device=device())
        for before, now in zip(self._before, self._masters(), strict=True):
            norm = torch.linalg.vector_norm(before, dtype=torch.float64)
            change = torch.linalg.vector_norm(before.sub_(now), dtype=torch.float64)  # no third copy
            before.copy_(now)
            squares += torch.stack([change, norm]).square().to(squares.device)
        change, norm = sum_over_ranks(squares).sqrt().tolist()
        return {"update_norm": change} | ({"relative_update_norm": change / norm} if norm > 0 else {})
