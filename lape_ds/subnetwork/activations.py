"""Activations with their gradients, for backward passes that are written out by hand.

Beside the compact engine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lape_ds.model.ffn import FFNLayer


@dataclass(frozen=True)
class Activation:
    """An elementwise function and its gradient.

    Attributes:
        forward: `x -> act(x)`, a new tensor.
        backward: `(d act(x), x) -> d x`; may overwrite its first argument.
    """

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


_aten = torch.ops.aten
# By their names in a model's config: torch's own kernels, which plain autograd would run too.
_ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation(functional.silu, _aten.silu_backward),
    "gelu": Activation(functional.gelu, _aten.gelu_backward),
    "gelu_pytorch_tanh": Activation(
        lambda x: functional.gelu(x, approximate="tanh"),
        lambda grad, x: _aten.gelu_backward(grad, x, approximate="tanh"),
    ),
    "relu": Activation(functional.relu, lambda grad, x: _aten.threshold_backward(grad, x, 0)),
}
_ACTIVATIONS["swish"] = _ACTIVATIONS["silu"]


def activation_of(layer: FFNLayer) -> Activation:
    """The activation of a gated block; the rarer ones are differentiated by autograd, inside our backward."""
    function = layer.activation
    assert function is not None
    return _ACTIVATIONS.get(layer.activation_name, Activation(function, _autograd_backward(function)))


def _autograd_backward(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def backward(grad: Tensor, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            return torch.autograd.grad(function(leaf), leaf, grad)[0]

    return backward
