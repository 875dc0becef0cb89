"""Single-process training that owns only the subnetwork's entries: no DeepSpeed, no masks, no hooks.

The entries are leaf vectors; every forward writes them into a copy of the base weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass
class OracleResult:
    weights: dict[str, Tensor]  # the trained model's, in the model's dtype
    norms: list[float]  # before clipping, one a step


def entry_positions(model: nn.Module, neurons: Sequence[tuple[int, int]]) -> dict[str, list[tuple[int, ...]]]:
    """Position of every trained entry by parameter name: (row, column), or (expert, row, column) in a mixture.

    For the tiny Llama, Phi-3, Phi-2 and the mixtures of experts; the entries of a neuron side by side.
    """
    positions: dict[str, list[tuple[int, ...]]] = {}
    not_ours = (".mlp.gate.", "shared_expert", "bias")
    for name, param in model.named_parameters():
        if ".mlp." not in name or any(part in name for part in not_ours):
            continue
        layer = int(name.split(".")[2])
        picked = [index for (neuron_layer, index) in neurons if neuron_layer == layer]
        if not picked:
            continue
        if param.dim() == 3:
            positions[name] = _expert_positions(name, param, picked)
            continue
        rows, cols = param.shape
        if "down_proj" in name or "fc2" in name:
            positions[name] = [(row, index) for row in range(rows) for index in picked]
        elif "gate_up_proj" in name:
            positions[name] = [
                (row, col) for index in picked for row in (index, rows // 2 + index) for col in range(cols)
            ]
        else:
            positions[name] = [(index, col) for index in picked for col in range(cols)]
    return positions


def _expert_positions(name: str, param: Tensor, picked: list[int]) -> list[tuple[int, ...]]:
    _, rows, cols = param.shape
    size = cols if "down_proj" in name else rows // 2
    found: list[tuple[int, ...]] = []
    for expert, inside in (divmod(index, size) for index in picked):
        if "down_proj" in name:
            found += [(expert, row, inside) for row in range(rows)]
        else:
            found += [(expert, row, col) for row in (inside, size + inside) for col in range(cols)]
    return found


def train_entries(
    model: nn.Module,
    neurons: Sequence[tuple[int, int]],
    micro_batches: Callable[[int], list[list[Tensor]]],
    *,
    steps: int,
    make_optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    learning_rate: Callable[[int], float],
    max_norm: float,
    bf16_sums: bool = False,
    anchor: float = 0.0,
) -> OracleResult:
    """Trains the entries.

    Args:
        micro_batches: For a step, one list of micro-batches per rank; the gradient is the mean over all of them.
        anchor: Strength of the pull back to the base after each step.
        bf16_sums: Round the sum after each micro-batch of a rank and the mean over ranks to bf16 (what stage 0 does in bf16).
    """
    base = {name: param.detach().clone() for name, param in model.named_parameters()}
    positions = entry_positions(model, neurons)
    where = {name: tuple(torch.tensor(pairs).T) for name, pairs in positions.items()}
    masters = {name: base[name][where[name]].float().requires_grad_(True) for name in where}
    optimizer = make_optimizer(list(masters.values()))
    norms = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        total = {name: torch.zeros_like(value) for name, value in masters.items()}
        ranks = micro_batches(step)
        for rank in ranks:
            summed = {name: torch.zeros_like(value) for name, value in masters.items()}
            for input_ids in rank:
                for name, grad in _gradients(model, base, where, masters, input_ids, 1 / len(rank)).items():
                    summed[name] += grad.float()
                    if bf16_sums:
                        summed[name] = summed[name].bfloat16().float()
            for name in total:
                total[name] += summed[name] / len(ranks)
        if bf16_sums:
            total = {name: grad.bfloat16().float() for name, grad in total.items()}
        norm = torch.cat(list(total.values())).double().norm().item()
        norms.append(norm)
        scale = max_norm / (norm + 1e-6) if norm > max_norm else 1.0
        for name, value in masters.items():
            value.grad = total[name] * scale
        optimizer.step()
        for name, value in masters.items():
            start = base[name][where[name]].float()
            with torch.no_grad():
                value -= learning_rate(step) * anchor * (value - start)
    return OracleResult(_written(base, where, masters), norms)


def _written(base, where, masters) -> dict[str, Tensor]:
    weights = {name: value.clone() for name, value in base.items()}
    for name, index in where.items():
        weights[name][index] = masters[name].detach().to(weights[name].dtype)
    return weights


def _gradients(model, base, where, masters, input_ids, scale) -> dict[str, Tensor]:
    leaves = {
        name: value.detach().to(base[name].dtype).requires_grad_(True) for name, value in masters.items()
    }
    weights = dict(base)
    for name, index in where.items():
        weights[name] = base[name].clone().index_put(index, leaves[name])
    loss = functional_call(model, weights, kwargs={"input_ids": input_ids, "labels": input_ids}).loss
    grads = torch.autograd.grad(loss * scale, list(leaves.values()))
    return dict(zip(leaves, grads, strict=True))
