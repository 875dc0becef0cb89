"""LAPE: language activation probability entropy, and the published selection of language neurons.

Between counting and the neuron set; needs torch alone. Everything is computed in float64 on the CPU.

Shape legend: L layers, I neurons of a layer, K languages.

Source: arXiv 2402.16438 (definition, selection), arXiv 2510.13580 (the knobs' values). Where we differ from
the public code of both:
- Probabilities and entropies are float64; theirs are float32, so neurons whose entropies agree to about seven
  digits at the cut may change places.
- Ties at the cut are broken by (layer, index); theirs are left to `topk`.
- A neuron that the filter dropped is never selected; theirs takes some when fewer than `top_rate` remain.
- A language without neurons keeps its place; theirs drops it where it is the last one, because `bincount`
  without `minlength` does not see it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lape_ds.errors import UserError


def lape_entropy(probs_LIK: Tensor) -> Tensor:
    """Entropy of each neuron's activation probabilities over the languages.

    `p' = p / Σ_k p`, `H = -Σ_k p' ln p'` with `0 ln 0 = 0`. Low: specific to few languages.

    Args:
        probs_LIK: Activation probabilities in [0, 1].

    Returns:
        float64 `[L, I]` in nats, 0 to ln K; +inf for a neuron that is never active, which is specific to no
        language.

    Raises:
        UserError: Some probability is NaN or outside [0, 1].

    Source: arXiv 2402.16438, equation 3.
    """
    _check_probabilities(probs_LIK)
    total_LI = probs_LIK.sum(-1, dtype=torch.float64)
    entropy_LI = torch.zeros_like(total_LI)
    for probs_LI in probs_LIK.unbind(
        -1
    ):  # one language at a time: no second copy of [L, I, K], which may be gigabytes
        share_LI = probs_LI / total_LI
        entropy_LI -= torch.xlogy(share_LI, share_LI)
    return torch.where(total_LI > 0, entropy_LI, torch.inf)


def select(
    probs_LIK: Tensor,
    *,
    top_rate: float = 0.05,
    filter_rate: float = 0.95,
    activation_bar_ratio: float = 0.95,
) -> list[Tensor]:
    """Selects the language neurons.

    1. A neuron none of whose probabilities exceeds the `filter_rate` percentile of all probabilities is
       dropped.
    2. Of the others, those with the lowest entropy are taken, `round(L · I · top_rate)` of them, or all if
       they are fewer.
    3. A taken neuron belongs to every language whose probability exceeds the `activation_bar_ratio`
       percentile; to none, if none does.

    Args:
        probs_LIK: Activation probabilities in [0, 1].
        top_rate: Share of all neurons to take.
        filter_rate: Percentile of step 1, as a share.
        activation_bar_ratio: Percentile of step 3, as a share.

    Returns:
        Per language, in the order of the last axis, int32 `[n, 2]` of (layer, index), sorted; `n` may be 0.
        If all probabilities are equal, nothing exceeds a percentile and every language is empty.

    Raises:
        UserError: Some probability is NaN or outside [0, 1].
    """
    entropy_LI = lape_entropy(probs_LIK)
    filter_bar, activation_bar = percentiles(probs_LIK, filter_rate, activation_bar_ratio)
    highest_LI = probs_LIK.amax(-1)
    entropy_LI[~(highest_LI > filter_bar)] = torch.inf

    num_taken = min(round(entropy_LI.numel() * top_rate), int(entropy_LI.isfinite().sum()))
    taken = entropy_LI.flatten().sort(stable=True).indices[:num_taken].sort().values
    is_member_NK = probs_LIK.flatten(0, 1)[taken] > activation_bar
    indices = torch.stack([taken // entropy_LI.shape[1], taken % entropy_LI.shape[1]], dim=1).int()
    return [indices[is_member_N] for is_member_N in is_member_NK.unbind(1)]


def percentiles(values: Tensor, *rates: float) -> list[float]:
    """For each rate the `round(n · rate)`-th smallest of all n values, at least the smallest.

    Works for any n, where `torch.quantile` stops at 16.7 M.
    """
    flat = values.flatten()
    found = {rate: float(flat.kthvalue(max(1, round(flat.numel() * rate))).values) for rate in set(rates)}
    return [found[rate] for rate in rates]


def _check_probabilities(probs: Tensor) -> None:
    smallest, largest = probs.aminmax()  # NaN if any value is
    if not (smallest >= 0 and largest <= 1):
        raise UserError(
            f"activation probabilities must lie in [0, 1], found {float(smallest)} to {float(largest)}: "
            "some counts are damaged; remove the counts/ folder and run `lape-ds identify` again"
        )
