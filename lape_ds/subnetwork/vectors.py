"""Neurons' own weights, a vector each: where they lie in a model, and how to read and write them there.

Below pack.py, which keeps them on disk. A neuron's vector in one projection is its row of gate_proj or up_proj, its column of
down_proj.

Shape legend: n neurons of one layer, D hidden size, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lape_ds.model.ffn import FFNLayer, Projection, WeightSlice, ffn_layers
from lape_ds.subnetwork.entries import check_neurons

Vectors = dict[int, dict[Projection, Tensor]]  # by layer: of its neurons [n, D]


@torch.no_grad()
def neuron_vectors(model: nn.Module, neurons: Tensor) -> Vectors:
    """Copies some neurons' weights out of a model, to the CPU.

    Args:
        model: Of an architecture that model/ffn.py knows, not partitioned.
        neurons: integer [n, 2] of (layer, index), sorted, without repeats.

    Raises:
        UserError: A neuron lies outside the model, or none is given.
    """
    layers = ffn_layers(model)
    check_neurons(layers, neurons)
    found: Vectors = {}
    for layer in layers:
        index = neurons[neurons[:, 0] == layer.index, 1].long()
        if len(index):
            found[layer.index] = {
                part.projection: NeuronEntries.of(layer, part, index).read().cpu() for part in layer.slices
            }
    return found


@dataclass(frozen=True)
class NeuronEntries:
    """Some neurons' entries of one weight.

    Attributes:
        weight: [rows, cols], or of experts [E, rows, cols].
        axis: The neurons', of the last two.
        index: int64 [n]: rows or columns; rows of all experts count as those of one tall matrix.
        expert: int64 [n] with columns of a mixture, in which `index` is the column of that expert's matrix.
    """

    weight: nn.Parameter
    axis: Literal[0, 1]
    index: Tensor
    expert: Tensor | None

    @classmethod
    def of(cls, layer: FFNLayer, part: WeightSlice, neurons: Tensor) -> NeuronEntries:
        """Those of a layer's neurons, int64 [n], in one of its projections."""
        neurons = neurons.to(part.parameter.device)
        expert, inside = neurons // layer.neurons_per_expert, neurons % layer.neurons_per_expert
        index = part.offset + inside
        if part.axis == 0:
            return cls(part.parameter, 0, expert * part.parameter.shape[-2] + index, None)
        return cls(part.parameter, 1, index, expert if part.parameter.dim() == 3 else None)

    def read(self) -> Tensor:
        """A copy of the neurons' vectors, [n, D]."""
        weight = self.weight.detach()
        if self.expert is not None:
            return weight[self.expert, :, self.index]
        found = weight.view(-1, weight.shape[-1]).index_select(self.axis, self.index)
        return found if self.axis == 0 else found.t()

    def write(self, values: Tensor) -> None:
        """Writes the neurons' vectors, [n, D], in place.

        Columns are written several times faster from values whose transpose is contiguous, as `ready` makes them.
        """
        weight = self.weight.detach()
        if self.expert is not None:
            weight[self.expert, :, self.index] = values.to(weight)
            return
        values = values.to(weight) if self.axis == 0 else values.to(weight).t()
        weight.view(-1, weight.shape[-1]).index_copy_(self.axis, self.index, values)

    def ready(self, values: Tensor) -> Tensor:
        """The neurons' vectors [n, D] in the dtype, on the device and with the strides in which they are written fastest."""
        values = values.to(self.weight)
        return values if self.axis == 0 or self.expert is not None else values.t().contiguous().t()
