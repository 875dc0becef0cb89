"""The compact engine inside a mixture of experts: one module for all experts of a layer, one autograd function.

Beside compact.py, which puts it in the place of a model's own experts module. The frozen stacks `gate_up_proj` [E, 2I, D]
and `down_proj` [E, D, I] keep their names; the trained rows and columns of all experts lie in two parameters, in the order
of the masked engine's entries, so checkpoints know no engine. Every forward uses both, whichever experts have tokens:
the gradient of an expert without any is zero on this rank, and ranks agree on what they gather and reduce.

What is kept for backward: the input [T, D], and of every expert the output of its `gate_up_proj` [n, 2I]. The experts run
one by one, as in transformers' eager code.

Shape legend: T tokens, n of them routed to an expert, K experts of a token, E experts, I intermediate size of one, D hidden
size, k trained neurons of a layer, j of an expert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from deepspeed.runtime.zero import GatheredParameters
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lape_ds.model.experts import routes, run_experts
from lape_ds.model.ffn import FFNLayer, full_shape
from lape_ds.subnetwork.activations import activation_of
from lape_ds.subnetwork.entries import Mask


class CompactExperts(nn.Module):
    """The experts of a mixture, of which some neurons train.

    Args:
        layer: Of a mixture.
        masks: `entry_masks` of the model; without this layer's weights where it has no neuron. It then only passes
            gradients on, and keeps less for it than transformers' own code: no view of a weight, which under ZeRO-3 would
            hold on to all of it.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, layer: FFNLayer, masks: Mapping[str, Mask]) -> None:
        super().__init__()
        fused, _, down = layer.slices
        self.gate_up_proj, self.down_proj = fused.parameter, down.parameter
        self.num_experts = layer.num_experts
        self.neurons_per_expert = layer.neurons_per_expert
        self.hidden_size = full_shape(down.parameter)[1]
        self.activation = activation_of(layer)
        self.act_fn = self.activation.forward
        device = fused.parameter.device
        none = torch.empty(0, dtype=torch.int64)
        mask = masks.get(down.parameter_name)
        index = none if mask is None else mask.index
        # Neurons of the experts before each one: where its part of the slices begins.
        firsts = torch.arange(self.num_experts + 1) * self.neurons_per_expert
        self.starts: list[int] = torch.searchsorted(index, firsts).tolist()
        self.register_buffer("columns", (index % self.neurons_per_expert).to(device), persistent=False)
        rows = none if mask is None else masks[fused.parameter_name].index
        self.register_buffer("rows", rows.to(device), persistent=False)
        if mask is not None:
            gate_up = _entries(fused.parameter, masks[fused.parameter_name])
            self.gate_up_slice = nn.Parameter(gate_up.view(-1, self.hidden_size))
            self.down_slice = nn.Parameter(_entries(down.parameter, mask))

    @property
    def num_trained(self) -> int:
        """Neurons of all experts that train, k."""
        return len(self.columns)

    def of_expert(self, expert: int) -> slice:
        """Its part of the k trained neurons."""
        return slice(self.starts[expert], self.starts[expert + 1])

    def parts_of_down(self, flat: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(expert, view [D, j]) of a vector [D · k] in the order of the entries; experts without a neuron are left out."""
        for expert in range(self.num_experts):
            start, stop = self.starts[expert], self.starts[expert + 1]
            if start < stop:
                part = flat[self.hidden_size * start : self.hidden_size * stop]
                yield expert, part.view(self.hidden_size, stop - start)

    def write_slices(self) -> None:
        """Writes the trained slices into the frozen weights."""
        if not self.num_trained:
            return
        with torch.no_grad():
            self.gate_up_proj.view(-1, self.hidden_size).index_copy_(0, self.rows, self.gate_up_slice)
            for expert, part in self.parts_of_down(self.down_slice):
                self.down_proj[expert].index_copy_(1, self.columns[self.of_expert(expert)], part)

    @torch.compiler.disable
    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[T, D], [T, K], [T, K] to [T, D]."""
        self.write_slices()
        slices = (self.gate_up_slice, self.down_slice) if self.num_trained else (None, None)
        return _Experts.apply(hidden_states, top_k_weights, *slices, top_k_index, self)  # type: ignore[no-any-return]


class _Experts(torch.autograd.Function):
    """Forward and backward of `CompactExperts`. Weights are reached through the module, never saved (see `compact.py`)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weights_TK: Tensor,
        gate_up_slice: Tensor | None,
        down_slice: Tensor | None,
        index_TK: Tensor,
        experts: CompactExperts,
    ) -> Tensor:
        kept: list[Tensor] = []
        out_TD = run_experts(
            experts, hidden_TD, index_TK, weights_TK, lambda expert, tokens, gate_up: kept.append(gate_up)
        )
        ctx.experts = experts
        ctx.save_for_backward(weights_TK, index_TK, hidden_TD if experts.num_trained else None, *kept)
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        experts: CompactExperts = ctx.experts
        experts.write_slices()
        weights_TK, index_TK, hidden_TD, *kept = ctx.saved_tensors
        grads = _Gradients(ctx.needs_input_grad, experts, grad_TD, weights_TK)
        chosen = routes(index_TK, experts.num_experts)
        for (expert, tokens, choice), gate_up in zip(chosen, kept, strict=True):
            weight_n1 = weights_TK[tokens, choice, None]
            grad_nD = grad_TD[tokens]
            grad_mid_nI = grad_nD @ experts.down_proj[expert]  # not yet times the expert's weight
            gate_nI, up_nI = gate_up.chunk(2, dim=-1)
            active_nI = experts.activation.forward(gate_nI)
            mid_nI = active_nI * up_nI
            if grads.weights_TK is not None:
                grads.weights_TK[tokens, choice] = (grad_mid_nI * mid_nI).sum(-1, dtype=weights_TK.dtype)
            grad_mid_nI.mul_(weight_n1)
            # act(gate) and d mid are not needed any more: their memory takes d up and what goes on to d gate.
            grad_up_nI = active_nI.mul_(grad_mid_nI)
            grad_gate_nI = experts.activation.backward(grad_mid_nI.mul_(up_nI), gate_nI)
            grad_gate_up = torch.cat([grad_gate_nI, grad_up_nI], dim=1)
            if hidden_TD is not None:
                grads.add_slices(expert, hidden_TD[tokens], grad_gate_up, mid_nI, grad_nD * weight_n1)
            if grads.hidden_TD is not None:
                grads.hidden_TD.index_add_(0, tokens, grad_gate_up @ experts.gate_up_proj[expert])
        return grads.hidden_TD, grads.weights_TK, grads.gate_up_slice, grads.down_slice, None, None


class _Gradients:
    """What one backward pass adds up over the experts; None where nothing asks for it."""

    def __init__(
        self, needed: tuple[bool, ...], experts: CompactExperts, grad_TD: Tensor, weights_TK: Tensor
    ) -> None:
        self.hidden_TD = torch.zeros_like(grad_TD) if needed[0] else None
        self.weights_TK = torch.zeros_like(weights_TK) if needed[1] else None
        self.gate_up_slice: Tensor | None = None
        self.down_slice: Tensor | None = None
        self._experts = experts
        self._down: dict[int, Tensor] = {}
        if experts.num_trained:
            self.gate_up_slice = grad_TD.new_zeros(2 * experts.num_trained, experts.hidden_size)
            self.down_slice = grad_TD.new_zeros(experts.hidden_size * experts.num_trained)
            self._down = dict(experts.parts_of_down(self.down_slice))

    def add_slices(
        self, expert: int, hidden_nD: Tensor, grad_gate_up: Tensor, mid_nI: Tensor, grad_out_nD: Tensor
    ) -> None:
        """The selected rows and columns of one expert's dW; nothing if it has no trained neuron."""
        if expert not in self._down:
            return
        assert self.gate_up_slice is not None
        neurons = self._experts.of_expert(expert)
        columns = self._experts.columns[neurons]
        both = slice(2 * neurons.start, 2 * neurons.stop)  # an expert's rows: gate, then up
        local = self._experts.rows[both] - 2 * expert * self._experts.neurons_per_expert
        torch.mm(grad_gate_up.index_select(1, local).T, hidden_nD, out=self.gate_up_slice[both])
        grad_out_nD = grad_out_nD.to(mid_nI.dtype)
        torch.mm(grad_out_nD.T, mid_nI.index_select(1, columns), out=self._down[expert])


@torch.no_grad()
def _entries(weight: Tensor, mask: Mask) -> Tensor:
    """A copy of the trained entries in row-major order; gathers the weight first where ZeRO-3 has partitioned it."""
    with GatheredParameters([weight], enabled=hasattr(weight, "ds_id")):
        blocks = mask.blocks(0, weight.numel(), offset=0, device=weight.device)
        return torch.cat([block.gather(weight.view(-1)) for block in blocks])
