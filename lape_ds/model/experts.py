"""Running a mixture's experts one by one, so that what happens inside them can be seen.

Beside ffn.py: every mixture that it knows keeps its experts alike, as stacks `gate_up_proj` [E, 2I, D] and `down_proj`
[E, D, I] with one `act_fn`. The arithmetic and its order are those of transformers' eager code, so results are equal to
it bit for bit; the other implementations (`grouped_mm`, …) differ in rounding only.

Shape legend: T tokens (all rows of a batch), K experts of a token, E experts, I neurons of an expert, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


def routes(top_k_index_TK: Tensor, num_experts: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Which tokens go to which expert.

    Yields:
        (expert, its tokens, which of each token's K choices it is), int64 `[n]` each, for the experts that have
        tokens, in order. The device is waited for once, not once per expert.
    """
    num_tokens = len(top_k_index_TK)
    choices = top_k_index_TK.T.flatten()  # by choice, then token: the order of the eager code
    order = choices.sort(stable=True).indices
    sizes = torch.bincount(choices, minlength=num_experts).tolist()
    for expert, places in enumerate(order.split(sizes)):
        if len(places):
            yield expert, places % num_tokens, places // num_tokens


def run_experts(
    experts: Any,
    hidden_TD: Tensor,
    top_k_index_TK: Tensor,
    top_k_weights_TK: Tensor,
    see: Callable[[int, Tensor, Tensor], None],
) -> Tensor:
    """The forward of an experts module, which shows on the way what every expert computes.

    Args:
        experts: The module (`FFNLayer.gate` of a mixture).
        hidden_TD: Its input.
        top_k_index_TK: The experts of each token.
        top_k_weights_TK: Their weights.
        see: Called with (expert, its tokens int64 `[n]`, the output of its `gate_up_proj` `[n, 2I]`: the gate before
            the activation, then up).

    Returns:
        `[T, D]`, what the module itself would return.
    """
    result_TD = torch.zeros_like(hidden_TD)
    for expert, tokens, choice in routes(top_k_index_TK, experts.num_experts):
        gate_up = linear(hidden_TD[tokens], experts.gate_up_proj[expert])
        see(expert, tokens, gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        output = linear(experts.act_fn(gate) * up, experts.down_proj[expert])
        output = output * top_k_weights_TK[tokens, choice, None]
        result_TD.index_add_(0, tokens, output.to(result_TD.dtype))
    return result_TD


def unhook_activations(model: nn.Module) -> None:
    """Makes the activation of every mixture a plain function of its experts module, no module of its own.

    DeepSpeed's ZeRO-3 hooks every module and refuses to go on where ranks did not call the same ones in the same
    order; the eager code calls the activation once for each expert that has a token, which differs between ranks.
    Activations hold no parameters, so nothing else changes. Does nothing to dense models.
    """
    for module in list(model.modules()):
        fused: Any = getattr(module, "gate_up_proj", None)
        activation = getattr(module, "act_fn", None)
        if isinstance(fused, nn.Parameter) and isinstance(activation, nn.Module):
            del module.act_fn
            module.act_fn = activation.forward  # pyright: ignore[reportArgumentType]
