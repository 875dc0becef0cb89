"""Selection of neurons, slow and obviously right: loops over neurons, and everything in one tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor


class Knobs(TypedDict):
    """The three published knobs."""

    top_rate: float
    filter_rate: float
    activation_bar_ratio: float


def naive_entropy(probs_LIK: Tensor) -> list[list[float]]:
    """The definition, neuron by neuron (arXiv 2402.16438)."""
    entropies = []
    for layer in probs_LIK.tolist():
        entropies.append([])
        for probs in layer:
            total = sum(probs)
            shares = [p / total for p in probs] if total else []
            entropies[-1].append(-sum(s * math.log(s) for s in shares if s > 0) if total else math.inf)
    return entropies


def naive_select(
    probs_LIK: Tensor,
    *,
    top_rate: float,
    filter_rate: float,
    activation_bar_ratio: float,
    families: Sequence[str] | None = None,
) -> list[list[tuple[int, int]]]:
    """Selection, neuron by neuron; ties go to the lower (layer, index)."""
    ordered = sorted(probs_LIK.flatten().tolist())
    filter_bar = ordered[max(1, round(len(ordered) * filter_rate)) - 1]
    activation_bar = ordered[max(1, round(len(ordered) * activation_bar_ratio)) - 1]
    candidates = []
    compared = probs_LIK if families is None else by_family(probs_LIK, families)
    for layer, entropies in enumerate(naive_entropy(compared)):
        for index, entropy in enumerate(entropies):
            if any(p > filter_bar for p in probs_LIK[layer, index].tolist()):
                candidates.append((entropy, layer, index))
    num_neurons = probs_LIK.shape[0] * probs_LIK.shape[1]
    taken = sorted((layer, index) for _, layer, index in sorted(candidates)[: round(num_neurons * top_rate)])
    return [
        [(layer, index) for layer, index in taken if float(probs_LIK[layer, index, k]) > activation_bar]
        for k in range(probs_LIK.shape[2])
    ]


def by_family(probs_LIK: Tensor, families: Sequence[str]) -> Tensor:
    """`[L, I, F]`: in each family as active as in its most active language; families in the order of their first language."""
    result = []
    for layer in probs_LIK.tolist():
        result.append([])
        for probs in layer:
            highest: dict[str, float] = {}
            for name, p in zip(families, probs, strict=True):
                highest[name] = max(p, highest.get(name, 0.0))
            result[-1].append(list(highest.values()))
    return torch.tensor(result, dtype=torch.float64)


def naive_most_active(activity_LIK: Tensor, *, top_rate: float) -> list[list[tuple[int, int]]]:
    """Language by language: all neurons sorted by activity, then by (layer, index)."""
    num_layers, num_neurons, num_languages = activity_LIK.shape
    selected = []
    for k in range(num_languages):
        ranked = sorted(
            (-float(activity_LIK[layer, index, k]), layer, index)
            for layer in range(num_layers)
            for index in range(num_neurons)
        )
        best = ranked[: round(num_layers * num_neurons * top_rate)]
        selected.append(sorted((layer, index) for negative, layer, index in best if negative < 0))
    return selected


def whole_tensor_entropy(probs_LIK: Tensor) -> Tensor:
    """float64 `[L, I]`, of all neurons at once."""
    total_LI = probs_LIK.sum(-1, dtype=torch.float64)
    entropy_LI = torch.zeros_like(total_LI)
    for probs_LI in probs_LIK.unbind(-1):
        share_LI = probs_LI / total_LI
        entropy_LI -= torch.xlogy(share_LI, share_LI)
    return torch.where(total_LI > 0, entropy_LI, torch.inf)


def whole_tensor_select(
    probs_LIK: Tensor, *, top_rate: float, filter_rate: float, activation_bar_ratio: float
) -> list[Tensor]:
    """Of all neurons at once, with torch's own `kthvalue`."""
    flat = probs_LIK.flatten()

    def percentile(rate: float) -> Tensor:
        return flat.kthvalue(max(1, round(len(flat) * rate))).values

    entropy_LI = whole_tensor_entropy(probs_LIK)
    entropy_LI[~(probs_LIK.amax(-1) > percentile(filter_rate))] = torch.inf
    num_taken = min(round(entropy_LI.numel() * top_rate), int(entropy_LI.isfinite().sum()))
    taken = entropy_LI.flatten().sort(stable=True).indices[:num_taken].sort().values
    is_member_NK = probs_LIK.flatten(0, 1)[taken] > percentile(activation_bar_ratio)
    indices = torch.stack([taken // entropy_LI.shape[1], taken % entropy_LI.shape[1]], dim=1).int()
    return [indices[is_member_N] for is_member_N in is_member_NK.unbind(1)]
