"""LAPE: language activation probability entropy, and the published selection of language neurons.

Between counting and the neuron set; needs torch alone. Everything is computed in float64 on the CPU, in pieces, so that
memory holds the counts of all languages and little else.

Shape legend: L layers, I neurons of a layer, N = L · I, K languages, F families, n neurons of a piece.

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

from collections.abc import Sequence

import torch
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.neurons.probabilities import Probabilities, percentiles

_NEURONS_AT_ONCE = 8192  # of 300 languages 20 MB


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
    probs = Probabilities.from_tensor(probs_LIK)
    _highest(probs)
    return _entropy(probs, torch.arange(probs.num_neurons), families=None).unflatten(
        0, (probs.num_layers, -1)
    )


def select(
    probs: Tensor | Probabilities,
    *,
    top_rate: float = 0.05,
    filter_rate: float = 0.95,
    activation_bar_ratio: float = 0.95,
    families: Sequence[str] | None = None,
) -> list[Tensor]:
    """Selects the language neurons.

    1. A neuron none of whose probabilities exceeds the `filter_rate` percentile of all probabilities is
       dropped.
    2. Of the others, those with the lowest entropy are taken, `round(L · I · top_rate)` of them, or all if
       they are fewer.
    3. A taken neuron belongs to every language whose probability exceeds the `activation_bar_ratio`
       percentile; to none, if none does.

    With `families`, step 2 takes the entropy over families, in each of which a neuron is as active as in the family's
    most active language. So a neuron that all Slavic languages share is as specific as one that Georgian has for itself,
    while one that Polish alone has stays as specific as it was; the mean over a family, as though its texts were pooled,
    would hide the latter. Steps 1 and 3 are about languages as before, so that a family's neuron belongs to those of its
    languages that use it. With every language a family of its own this is the published selection.

    Args:
        probs: Activation probabilities in [0, 1]; a tensor is `[L, I, K]`.
        top_rate: Share of all neurons to take.
        filter_rate: Percentile of step 1, as a share.
        activation_bar_ratio: Percentile of step 3, as a share.
        families: Of every language, its family's name.

    Returns:
        Per language, in the order of the last axis, int32 `[n, 2]` of (layer, index), sorted; `n` may be 0.
        If all probabilities are equal, nothing exceeds a percentile and every language is empty.

    Raises:
        UserError: Some probability is NaN or outside [0, 1].
    """
    probs = Probabilities.from_tensor(probs) if isinstance(probs, Tensor) else probs
    highest_N = _highest(probs)
    filter_bar, activation_bar = percentiles(probs.languages, filter_rate, activation_bar_ratio)
    passing = (highest_N > filter_bar).nonzero()[:, 0]
    order = _entropy(probs, passing, families=families).sort(stable=True).indices
    taken = passing[order[: round(probs.num_neurons * top_rate)]].sort().values
    return [
        _as_indices(taken[probs_N[taken] > activation_bar], probs.neurons_per_layer)
        for probs_N in probs.languages()
    ]


def most_active(activity_LI: Tensor, *, top_rate: float) -> Tensor:
    """Selects, for one language by itself, the neurons that are most active on its text.

    What LAPE is compared with: a language's neurons need not be its own.

    Args:
        activity_LI: Activation probability, or mean activation. A neuron at 0 or below is not taken.
        top_rate: Share of all neurons to take.

    Returns:
        int32 `[n, 2]` of (layer, index), sorted; ties at the cut go to the lower (layer, index).
    """
    activity_N = activity_LI.flatten()
    number = round(len(activity_N) * top_rate)
    if number == 0:
        return torch.empty(0, 2, dtype=torch.int32)
    # Not by sorting, which takes ten times as long.
    bar = activity_N.kthvalue(len(activity_N) - number + 1).values
    above, at_bar = (activity_N > bar).nonzero()[:, 0], (activity_N == bar).nonzero()[:, 0]
    taken = torch.cat([above, at_bar[: number - len(above)]])
    return _as_indices(taken[activity_N[taken] > 0].sort().values, activity_LI.shape[1])


def _highest(probs: Probabilities) -> Tensor:
    """Every neuron's highest probability in any language, float64 `[N]`; on the way all are checked."""
    highest_N = torch.zeros(probs.num_neurons, dtype=torch.float64)
    for probs_N in probs.languages():
        _check_probabilities(probs_N)
        torch.maximum(highest_N, probs_N, out=highest_N)
    return highest_N


def _entropy(probs: Probabilities, neurons: Tensor, *, families: Sequence[str] | None) -> Tensor:
    """Of some neurons, over languages or families: float64 `[len(neurons)]`."""
    members = None
    if families is not None:
        members = [
            torch.tensor([k for k, other in enumerate(families) if other == family])
            for family in dict.fromkeys(families)
        ]
    pieces = []
    for neurons_n in neurons.split(_NEURONS_AT_ONCE):
        probs_Kn = probs.of_neurons(neurons_n)
        if members is not None:
            probs_Kn = torch.stack([probs_Kn[of_family].amax(0) for of_family in members])
        pieces.append(_entropy_of(probs_Kn))
    return torch.cat(pieces)


def _entropy_of(probs_Kn: Tensor) -> Tensor:
    """Entropy over the first axis, float64 `[n]`."""
    total_n = probs_Kn.T.contiguous().sum(-1)
    entropy_n = torch.zeros_like(total_n)
    for probs_n in probs_Kn:
        share_n = probs_n / total_n
        entropy_n -= torch.xlogy(share_n, share_n)
    return torch.where(total_n > 0, entropy_n, torch.inf)


def _as_indices(neurons_n: Tensor, neurons_per_layer: int) -> Tensor:
    """Numbers of neurons, layer · I + index, as int32 `[n, 2]` of (layer, index)."""
    return torch.stack([neurons_n // neurons_per_layer, neurons_n % neurons_per_layer], dim=1).int()


def _check_probabilities(probs: Tensor) -> None:
    smallest, largest = probs.aminmax()  # NaN if any value is
    if not (smallest >= 0 and largest <= 1):
        raise UserError(
            f"activation probabilities must lie in [0, 1], found {float(smallest)} to {float(largest)}: "
            "some counts are damaged; remove the counts/ folder and run `lape-ds identify` again"
        )
