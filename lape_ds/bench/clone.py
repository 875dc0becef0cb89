"""The reference's way to train a subnetwork, written by us to be measured against: weights cloned in every forward.

Of the published code of arXiv 2510.13580 this is the algorithm and none of the text: the trained rows and columns are
parameters of their own; every forward clones the whole weight, writes them into the clone and multiplies with it. So
autograd keeps the clone for backward and computes the gradient of the whole weight, of which only those rows are used.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from lape_ds.model.ffn import ffn_layers


class ClonedLinear(nn.Module):
    """A linear module of which some rows (`axis` 0) or columns (`axis` 1) train.

    Attributes:
        trained: [n, columns] or [rows, n], what is written over the weight's own.
    """

    def __init__(self, linear: nn.Module, axis: int, index: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.axis = axis
        assert isinstance(linear.weight, nn.Parameter)
        self.trained = nn.Parameter(linear.weight.detach().index_select(axis, index))
        self.index: Tensor
        self.register_buffer("index", index, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., columns] to [..., rows]."""
        assert isinstance(self.weight, nn.Parameter)
        weight = self.weight.clone()
        if self.axis == 0:
            weight[self.index] = self.trained
        else:
            weight[:, self.index] = self.trained
        return functional.linear(hidden, weight, self.bias)  # type: ignore[arg-type]


def clone_subnetwork(model: nn.Module, neurons: Tensor) -> list[nn.Parameter]:
    """Freezes a model but for its neurons, in the reference's way; layers without neurons stay as they are.

    Args:
        model: With plain linear modules in its feed-forward blocks.
        neurons: int64 [n, 2] of (layer, index).

    Returns:
        What trains.
    """
    model.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for layer in ffn_layers(model):
        index = neurons[neurons[:, 0] == layer.index, 1]
        if not len(index):
            continue
        for part in layer.slices:
            block, _, name = part.parameter_name.removesuffix(".weight").rpartition(".")
            parent = model.get_submodule(block)
            linear = parent.get_submodule(name)
            cloned = ClonedLinear(linear, part.axis, (index + part.offset).to(part.parameter.device))
            setattr(parent, name, cloned)
            trained.append(cloned.trained)
    return trained
