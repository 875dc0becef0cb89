"""The compact engine: the neurons of a mask as small parameters of their own, the base weights frozen.

Between the loaded model and DeepSpeed, before `deepspeed.initialize`. DeepSpeed sees an ordinary model with a few small
parameters: gradients, masters and moments exist for these alone, in every ZeRO stage, by themselves.

The forward pass writes the slices into the frozen weight (rows of `gate_proj` and `up_proj`, columns of `down_proj`; no
weight is copied) and multiplies with the whole weight. The backward pass computes dX as usual and dW for the selected
rows and columns only. Under ZeRO-3 a weight is gathered anew for backward and its slices are written in again.

What is kept for backward: of a gated block its input [N, D] and the outputs of `gate_proj` and `up_proj` [N, I] (plain
autograd keeps the activation too, and for a trained `down_proj` its input); of an ungated block the input and the
selected columns of the second linear's input. A block in front of the first trained one keeps nothing.

Shape legend: N tokens, D hidden size, I intermediate size, k selected neurons.

Source: arXiv 2510.13580 trains the same weights by cloning every FFN weight in each forward and zeroing its gradient.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from deepspeed.runtime.zero import GatheredParameters, register_external_parameter
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lape_ds.model.ffn import FFNLayer, ffn_layers
from lape_ds.subnetwork.activations import activation_of
from lape_ds.subnetwork.compact_experts import CompactExperts
from lape_ds.subnetwork.entries import Mask, entry_masks
from lape_ds.subnetwork.parameters import TrainedParameter


def insert_slices(model: nn.Module, neurons: Tensor) -> list[TrainedParameter]:
    """Freezes the model and puts trainable slices into its feed-forward blocks, in place.

    Blocks from the first one with a neuron on are replaced by `CompactFFN` (gated), the experts of a mixture by
    `CompactExperts`, the linears of an ungated block by `CompactLinear`; names of the model's own parameters stay as they
    are. With parameters partitioned by `zero.Init` this is collective: every rank must enter it with the same neurons.

    Args:
        model: A causal language model of a supported architecture.
        neurons: integer [n, 2] of (layer, index).

    Returns:
        What trains.

    Raises:
        UserError: The architecture is not known, or the neurons do not fit the model.
    """
    masks = entry_masks(model, neurons)
    model.requires_grad_(False)
    layers = ffn_layers(model)
    first = int(neurons[:, 0].min())
    trained: list[TrainedParameter] = []
    for layer in layers[first:]:
        index = neurons[neurons[:, 0] == layer.index, 1].long().unique()
        if layer.is_mixture:
            trained += _replace_experts(model, layer, masks)
        elif layer.is_gated:
            trained += _replace_block(model, layer, index)
        elif len(index):
            trained += _replace_linears(model, layer, masks)
    return trained


def _replace_block(model: nn.Module, layer: FFNLayer, index: Tensor) -> list[TrainedParameter]:
    block = CompactFFN(model.get_submodule(layer.block_name), layer, index)
    model.set_submodule(layer.block_name, block)
    if not len(index):
        return []
    gate, up, down = layer.slices
    is_fused = gate.parameter_name == up.parameter_name
    return [
        TrainedParameter(block.gate_slice, gate.parameter_name),
        TrainedParameter(block.up_slice, up.parameter_name, block.gate_slice_numel if is_fused else 0),
        TrainedParameter(block.down_slice, down.parameter_name),
    ]


def _replace_experts(model: nn.Module, layer: FFNLayer, masks: dict[str, Mask]) -> list[TrainedParameter]:
    experts = CompactExperts(layer, masks)
    model.set_submodule(layer.block_name, experts)
    if not experts.num_trained:
        return []
    fused, _, down = layer.slices
    return [
        TrainedParameter(experts.gate_up_slice, fused.parameter_name),
        TrainedParameter(experts.down_slice, down.parameter_name),
    ]


def _replace_linears(model: nn.Module, layer: FFNLayer, masks: dict[str, Mask]) -> list[TrainedParameter]:
    trained = []
    for part in layer.slices:
        name = part.parameter_name.removesuffix(".weight")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        compact = CompactLinear(linear, part.axis, masks[part.parameter_name].index)
        model.set_submodule(name, compact)
        trained.append(TrainedParameter(compact.slice, part.parameter_name))
    return trained


class CompactFFN(nn.Module):
    """A gated feed-forward block, `down(act(gate(x)) * up(x))`, of which the neurons `index` train.

    Keeps nothing for backward but the block's input and the outputs of its first two projections, whether it has neurons
    of its own or only passes gradients on.

    Args:
        block: The model's own block; its children go on under their names.
        layer: Where its weights are.
        index: int64 [k], sorted; may be empty.
    """

    index: Tensor

    def __init__(self, block: nn.Module, layer: FFNLayer, index: Tensor) -> None:
        super().__init__()
        for name, child in block.named_children():
            self.add_module(name, child)
        gate, up, down = layer.slices
        self._linear_names = [part.parameter_name.split(".")[-2] for part in layer.slices]
        self.is_fused = gate.parameter_name == up.parameter_name
        self.num_neurons = layer.num_neurons
        self.activation = activation_of(layer)
        self.register_buffer("index", index.to(gate.parameter.device), persistent=False)
        if len(index):
            self.gate_slice = _selected(gate.parameter, 0, index)
            self.up_slice = _selected(up.parameter, 0, index + up.offset)
            self.down_slice = _selected(down.parameter, 1, index)
        # One function reads all projections, so ZeRO-3 must gather them for this module and not each for its own. (A "leaf
        # module" would do so too, but reduces gradients before they exist where no input asks for one.)
        for linear in self.linears():
            for param in linear.parameters():
                register_external_parameter(self, param)

    @property
    def gate_slice_numel(self) -> int:
        """K · D, also where ZeRO-3 holds only a part of it."""
        return len(self.index) * self.linears()[0].in_features

    def linears(self) -> list[nn.Linear]:
        """gate, up, down; the first two are the same where they are fused."""
        return [getattr(self, name) for name in self._linear_names]

    def write_slices(self) -> None:
        """Writes the trained slices into the frozen weights."""
        if not len(self.index):
            return
        gate, up, down = self.linears()
        with torch.no_grad():
            gate.weight.index_copy_(0, self.index, self.gate_slice)
            offset = self.num_neurons if self.is_fused else 0
            up.weight.index_copy_(0, self.index + offset, self.up_slice)
            down.weight.index_copy_(1, self.index, self.down_slice)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        self.write_slices()
        slices = (self.gate_slice, self.up_slice, self.down_slice) if len(self.index) else (None, None, None)
        hidden_NI, wire_ND = _GatedHidden.apply(x.flatten(0, -2), *slices, self)
        return _Down.apply(hidden_NI, wire_ND, self).view(*x.shape[:-1], -1)


class _GatedHidden(torch.autograd.Function):
    """act(gate(x)) * up(x), and the gradients of all three slices.

    Weights are reached through the module, never saved: ZeRO-3 frees a gathered weight after forward and gathers it again for
    backward, so a saved tensor would hold on to the first copy, or be empty.

    It ends before `down_proj`, since non-reentrant recomputation stops at the last tensor that is saved, and autograd packs what
    a function saves when its forward is over: as one function the block would compute `down_proj` a second time for nothing.
    The gradient of `down_slice` needs d out; it comes through `wire`, an output [N, D] without storage that only `_Down` takes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        gate_slice: Tensor | None,
        up_slice: Tensor | None,
        down_slice: Tensor | None,
        ffn: CompactFFN,
    ) -> tuple[Tensor, Tensor]:
        gate_linear, up_linear, down_linear = ffn.linears()
        if ffn.is_fused:
            both = functional.linear(x_ND, gate_linear.weight, gate_linear.bias)
            saved = (both,)
            gate_NI, up_NI = both.chunk(2, dim=-1)
        else:
            gate_NI = functional.linear(x_ND, gate_linear.weight, gate_linear.bias)
            up_NI = functional.linear(x_ND, up_linear.weight, up_linear.bias)
            saved = (gate_NI, up_NI)
        ctx.ffn = ffn
        ctx.save_for_backward(*(saved if gate_slice is None else (*saved, x_ND)))
        hidden_NI = ffn.activation.forward(gate_NI).mul_(up_NI)
        return hidden_NI, x_ND.new_zeros(()).expand(len(x_ND), down_linear.out_features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_hidden_NI: Tensor, grad_out_ND: Tensor) -> tuple[Tensor | None, ...]:
        ffn: CompactFFN = ctx.ffn
        gate_linear, up_linear, _ = ffn.linears()
        saved = ctx.saved_tensors  # once: recomputation unpacks each only once
        gate_NI, up_NI = saved[0].chunk(2, dim=-1) if ffn.is_fused else saved[:2]
        active_NI = ffn.activation.forward(gate_NI)
        slice_grads: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
        index = ffn.index
        if len(index):
            hidden_Nk = active_NI.index_select(1, index).mul_(up_NI.index_select(1, index))
            grad_down = grad_out_ND.T @ hidden_Nk
        # act(gate) and d hidden are not needed any more: their memory takes d up and what goes on to d gate.
        grad_up_NI = active_NI.mul_(grad_hidden_NI)
        grad_gate_NI = ffn.activation.backward(grad_hidden_NI.mul_(up_NI), gate_NI)
        if len(index):
            x_ND = saved[-1]
            grad_gate = grad_gate_NI.index_select(1, index).T @ x_ND
            grad_up = grad_up_NI.index_select(1, index).T @ x_ND
            slice_grads = (grad_gate, grad_up, grad_down)
        grad_x = None
        if ctx.needs_input_grad[0]:
            # Rounded and summed as plain autograd does it, so that in bf16 both engines agree to the bit.
            if ffn.is_fused:
                grad_x = torch.cat([grad_gate_NI, grad_up_NI], dim=1) @ gate_linear.weight
            else:
                grad_x = (grad_up_NI @ up_linear.weight).add_(grad_gate_NI @ gate_linear.weight)
        return grad_x, *slice_grads, None


class _Down(torch.autograd.Function):
    """The block's `down_proj`; keeps nothing. Its backward is the first of the block's and writes the slices in anew."""

    @staticmethod
    def forward(ctx: Any, hidden_NI: Tensor, wire_ND: Tensor, ffn: CompactFFN) -> Tensor:
        ctx.ffn = ffn
        down_linear = ffn.linears()[2]
        return functional.linear(hidden_NI, down_linear.weight, down_linear.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        ctx.ffn.write_slices()
        return grad_ND @ ctx.ffn.linears()[2].weight, grad_ND, None


class CompactLinear(nn.Module):
    """A linear of an ungated block, of which the rows (`axis` 0) or columns (`axis` 1) `index` train.

    Args:
        linear: The model's own; its weight and bias go on under their names.
        axis: The neurons' axis.
        index: int64 [k], sorted, not empty.
    """

    index: Tensor

    def __init__(self, linear: nn.Linear, axis: Literal[0, 1], index: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.in_features, self.out_features, self.axis = linear.in_features, linear.out_features, axis
        self.register_buffer("index", index.to(linear.weight.device), persistent=False)
        self.slice = _selected(linear.weight, axis, index)

    def write_slices(self) -> None:
        """Writes the trained slice into the frozen weight."""
        with torch.no_grad():
            self.weight.index_copy_(self.axis, self.index, self.slice)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        self.write_slices()
        return _Linear.apply(x, self.slice, self)  # type: ignore[no-any-return]


class _Linear(torch.autograd.Function):
    """Forward and backward of `CompactLinear`; keeps the input, or its selected columns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slice_: Tensor, linear: CompactLinear) -> Tensor:
        ctx.linear = linear
        ctx.save_for_backward(x if linear.axis == 0 else x.index_select(-1, linear.index))
        return functional.linear(x, linear.weight, linear.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        linear: CompactLinear = ctx.linear
        linear.write_slices()
        (saved,) = ctx.saved_tensors
        rows = grad if linear.axis == 1 else grad.index_select(-1, linear.index)
        grad_slice = rows.flatten(0, -2).T @ saved.flatten(0, -2)
        return grad @ linear.weight if ctx.needs_input_grad[0] else None, grad_slice, None


def _selected(weight: Tensor, axis: Literal[0, 1], index: Tensor) -> nn.Parameter:
    """A copy of some rows or columns as a parameter; gathers the weight first where ZeRO-3 has partitioned it."""
    with GatheredParameters([weight], enabled=hasattr(weight, "ds_id")), torch.no_grad():
        return nn.Parameter(weight.index_select(axis, index.to(weight.device)).contiguous())
