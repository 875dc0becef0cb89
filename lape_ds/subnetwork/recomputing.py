"""Gradient checkpointing of the decoder layers, of both kinds.

Between `prepare` and DeepSpeed: which layers must recompute depends on what trains.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from lape_ds.model.ffn import decoder_layers


def recompute_layers(model: PreTrainedModel, kind: Literal["none", "non_reentrant", "reentrant"]) -> None:
    """Makes every decoder layer forget its inner activations and compute them again for backward.

    torch's reentrant kind gives gradients only to a layer whose input asks for one. Where everything before the first
    trained layer is frozen, that layer's input is made to ask; the ones before it are left out of backward either way.

    Args:
        model: With `requires_grad` set on what trains.
        kind: "none", or torch's checkpointing with or without `use_reentrant`.
    """
    if kind == "none":
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": kind == "reentrant"})
    layers = decoder_layers(model)
    inside = {id(param) for layer in layers for param in layer.parameters()}
    if kind == "non_reentrant" or any(
        param.requires_grad and id(param) not in inside for param in model.get_input_embeddings().parameters()
    ):
        return
    first: Any = next(layer for layer in layers if any(param.requires_grad for param in layer.parameters()))
    first._gradient_checkpointing_func = _asking(first._gradient_checkpointing_func)


def _asking(checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(checkpoint)
    def run(layer: Callable[..., Any], hidden_states: Tensor, *args: Any) -> Any:
        return checkpoint(layer, hidden_states.requires_grad_(True), *args)

    return run
