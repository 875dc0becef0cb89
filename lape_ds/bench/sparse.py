"""PEFT's nearest sparse tuner on the entries of a subnetwork.

That is SHiRA (arXiv 2406.13175): the only tuner of PEFT 0.17 to 0.21 that trains entries of a weight which one may
choose (its mask function). Of the others, `trainable_tokens` takes rows, but of embeddings only; Super-Tuning picks its
entries by magnitude and cannot be told; IA3 scales neurons and trains none of their weights. SHiRA adds its entries to a
clone of the weight in every forward, and autograd computes the gradient of the whole weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import peft
import torch
from torch import Tensor, nn

from lape_ds.model.ffn import ffn_layers, full_shape


def shira_subnetwork(model: nn.Module, neurons: Tensor) -> list[nn.Parameter]:
    """Freezes a model but for about as many entries as its subnetwork has, as PEFT's SHiRA does.

    SHiRA trains r · (rows + columns) entries of every weight, r being one whole number for all of them: here the one
    that comes nearest to the subnetwork's size, at least 1. The entries are those of the layer's neurons first, then of
    others. Layers without neurons are left out.

    Args:
        model: With plain linear modules in its feed-forward blocks.
        neurons: int64 [n, 2] of (layer, index).

    Returns:
        What trains.
    """
    torch.sparse.check_sparse_tensor_invariants.disable()  # as it is by default, but torch warns unless told
    wanted: dict[int, tuple[int, Tensor]] = {}  # by id of the module: axis and neurons
    names, num_entries, num_per_rank = [], 0, 0
    for layer in ffn_layers(model):
        index = neurons[neurons[:, 0] == layer.index, 1]
        for part in layer.slices if len(index) else ():
            name = part.parameter_name.removesuffix(".weight")
            rows, cols = full_shape(part.parameter)
            wanted[id(model.get_submodule(name))] = (part.axis, index + part.offset)
            names.append(name)
            num_entries += len(index) * (cols if part.axis == 0 else rows)
            num_per_rank += rows + cols
    config = peft.ShiraConfig(r=max(1, round(num_entries / num_per_rank)), target_modules=names)
    config.mask_fn = _mask_function(wanted)
    peft.inject_adapter_in_model(config, model)
    return [param for param in model.parameters() if param.requires_grad]


def _mask_function(wanted: Mapping[int, tuple[int, Tensor]]) -> Callable[..., Tensor]:
    def mask(base_layer: nn.Linear, r: int, **_: Any) -> Tensor:
        axis, index = wanted[id(base_layer)]
        rows, cols = base_layer.weight.shape
        return neuron_mask(rows, cols, axis, index, num_entries=r * (rows + cols))

    return mask


def neuron_mask(rows: int, cols: int, axis: int, index: Tensor, *, num_entries: int) -> Tensor:
    """Zeros and ones, bool [rows, cols] on the CPU: `num_entries` ones, in the neurons of `index` first.

    Args:
        rows: Of the weight.
        cols: Of the weight.
        axis: The neurons' axis.
        index: int64 [n] of neurons, on the CPU.
        num_entries: Ones wanted.
    """
    length, width = (rows, cols) if axis == 0 else (cols, rows)
    others = torch.ones(length, dtype=torch.bool).index_fill(0, index, False).nonzero()[:, 0]
    order = torch.cat([index, others])
    whole, rest = divmod(num_entries, width)
    mask = torch.zeros(length, width, dtype=torch.bool)
    mask[order[:whole]] = True
    if rest:
        mask[order[whole], :rest] = True
    return mask if axis == 0 else mask.T
