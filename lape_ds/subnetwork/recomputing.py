"""Gradient checkpointing of the decoder layers, of both kinds.

Between `prepare` and DeepSpeed: which layers must recompute depends on what trains.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from lape_ds.model.ffn import decoder_layers


def recompute_layers(model: PreTrainedModel, kind: Literal["none", "non_reentrant", "reentrant"]) -> None:
    """Makes decoder layers forget their inner activations and compute them again for backward.

    Through the two attributes that transformers' layers have for it, and not its own switch, which makes the embeddings' output
    ask for a gradient: backward would then go through all layers, also where everything in front of the first trained one is
    frozen. Layers in front of that one keep nothing anyway and are left alone.

    Args:
        model: With `requires_grad` set on what trains.
        kind: "none", or torch's checkpointing with or without `use_reentrant`.
    """
    if kind == "none":
        return
    recompute = partial(_recompute, use_reentrant=kind == "reentrant")
    layers = decoder_layers(model)
    in_layers = {id(param) for layer in layers for param in layer.parameters()}
    trains_before = any(
        param.requires_grad and id(param) not in in_layers
        for param in model.get_input_embeddings().parameters()
    )
    first = 0
    if not trains_before:
        first = next(i for i, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters()))
    for number, layer in enumerate(layers[first:]):
        # The reentrant kind gives gradients only to a layer whose input asks for one.
        needs_asking = kind == "reentrant" and number == 0 and not trains_before
        layer.gradient_checkpointing = True  # type: ignore[assignment]
        layer._gradient_checkpointing_func = _asking(recompute) if needs_asking else recompute  # type: ignore[assignment]


def _recompute(layer: Callable[..., Any], *args: Any, use_reentrant: bool) -> Any:
    if (
        not torch.is_grad_enabled()
    ):  # held-out text: nothing to forget, and the reentrant kind would warn of it
        return layer(*args)
    return checkpoint(layer, *args, use_reentrant=use_reentrant)


def _asking(recompute: Callable[..., Any]) -> Callable[..., Any]:
    def run(layer: Callable[..., Any], hidden_states: Tensor, *args: Any) -> Any:
        return recompute(layer, hidden_states.requires_grad_(True), *args)

    return run
