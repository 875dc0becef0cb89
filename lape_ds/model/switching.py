"""Switching neurons off in a loaded model, and on again with every bit as it was.

Beside ffn.py, which says where the neurons are. Ablation measures the model in between.

A neuron is off when its activation is 0, which is when nothing flows through its column of `down_proj`. So the column is
zeroed and not the activation: no hook, no other forward, and every kernel (fused, grouped over experts, compiled) takes part.
The bias of `down_proj` belongs to no neuron and stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lape_ds.model.ffn import FFNLayer, ffn_layers


@contextmanager
def switched_off(model: nn.Module, neurons: Tensor) -> Iterator[None]:
    """Switches neurons off as long as its `with` block lasts; then the weights have the bits that they had.

    Needs whole weights on one device (no ZeRO-3), and memory for a copy of the zeroed columns.

    Args:
        model: A plain `AutoModelForCausalLM`, not wrapped.
        neurons: int `[n, 2]` of (layer, index), none twice; in a mixture of experts index = expert × intermediate size + i.

    Raises:
        UserError: The architecture is not supported.
    """
    layers = ffn_layers(model)
    kept: list[tuple[Tensor, tuple[Tensor, ...], Tensor]] = []
    try:
        for layer in layers:
            indices = neurons[neurons[:, 0] == layer.index, 1].long()
            if len(indices):
                vectors, places = _down_vectors(layer, indices)
                kept.append((vectors, places, vectors[places]))
                vectors[places] = 0
        yield
    finally:
        for vectors, places, values in kept:
            vectors[places] = values


def _down_vectors(layer: FFNLayer, indices: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The weights of `down_proj` as a view [I, D], in a mixture [E, I, D], and where in it the neurons' vectors are."""
    down = layer.slices[-1]
    assert (down.projection, down.axis, down.offset) == ("down_proj", 1, 0)
    vectors = down.parameter.detach().transpose(-1, -2)
    indices = indices.to(vectors.device)
    assert not len(indices) or 0 <= int(indices.min()) <= int(indices.max()) < layer.num_neurons
    if not layer.is_mixture:
        return vectors, (indices,)
    size = layer.neurons_per_expert
    return vectors, (torch.div(indices, size, rounding_mode="floor"), indices % size)
