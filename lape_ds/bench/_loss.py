"""STAND-IN until lape_ds.model.loss lands."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class LanguageModelLoss(nn.Module):
    """STAND-IN."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, targets: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """STAND-IN."""
        logits = self.model(input_ids=input_ids, use_cache=False).logits
        nll = functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="none"
        )
        return nll.sum(), nll.detach().view_as(targets)
