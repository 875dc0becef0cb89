"""How alike two languages' sentences are to a model: retrieval, cosine and CKA of paired representations, by sentence.

Below the alignment of a run, which asks this for every layer. Each measure is the mean of what single sentences add to it, so
that all of them have intervals by the same resampling of sentences. What shuffled pairs would give is computed exactly, not
drawn: it is what a measure must be held against, because all representations of one model are alike to some degree.

Source: retrieval as in Artetxe and Schwenk, arXiv 1812.10464; anisotropy, Ethayarajh, arXiv 1909.00512; linear CKA, Kornblith
et al., arXiv 1905.00414, whose value for unrelated sentences is far from 0 where there are few for the dimensions.

Shape legend: n sentences, D hidden size, M measures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lape_ds.analysis.alignment.numbers import MEASURES
from lape_ds.errors import UserError

_TIE = 1e-9  # cosines that are nearer are equal: they differ by the order of sums


@dataclass(frozen=True, eq=False)
class Similarities:
    """Of one pair of languages in one layer.

    Attributes:
        by_sentence: float64 `[M, n]` in the order of `MEASURES`; the mean over sentences is the measure. What a sentence adds to
            CKA is its influence (the infinitesimal jackknife): the candidates of a retrieval, the mean that is subtracted and
            what a sentence is unpaired with stay those of all sentences.
        chance: float64 `[M]`: the expectation where the pairs are shuffled.
    """

    by_sentence: Tensor
    chance: Tensor


def similarities(own_nD: Tensor, other_nD: Tensor) -> Similarities:
    """Compares the same sentences in two languages.

    Args:
        own_nD: Representations in the trained language.
        other_nD: In another one; row i says the same.

    Raises:
        UserError: Fewer than two sentences, or all of a language have one representation.
    """
    own_nD, other_nD = own_nD.double(), other_nD.double()
    if len(own_nD) < 2:
        raise UserError(f"{len(own_nD)} parallel sentence: at least two are needed to compare languages")
    centred = own_nD - own_nD.mean(0), other_nD - other_nD.mean(0)
    raw_nn, centred_nn = _cosines(own_nD, other_nD), _cosines(*centred)
    to_n, from_n = _retrieved(raw_nn), _retrieved(raw_nn.T)
    centred_to_n, centred_from_n = _retrieved(centred_nn), _retrieved(centred_nn.T)
    unpaired_n, centred_unpaired_n = _unpaired(raw_nn), _unpaired(centred_nn)
    cka_n, cka_chance = _cka(*centred)
    by_sentence = {
        "retrieval": (to_n + from_n) / 2,
        "retrieval_to_other": to_n,
        "retrieval_from_other": from_n,
        "centred_retrieval": (centred_to_n + centred_from_n) / 2,
        "centred_retrieval_to_other": centred_to_n,
        "centred_retrieval_from_other": centred_from_n,
        "cosine": raw_nn.diagonal(),
        "centred_cosine": centred_nn.diagonal(),
        "cosine_above_unpaired": raw_nn.diagonal() - unpaired_n,
        "cka": cka_n,
    }
    chance = dict.fromkeys((name for name in MEASURES if "retrieval" in name), 1 / len(own_nD)) | {
        "cosine": float(unpaired_n.mean()),
        "centred_cosine": float(centred_unpaired_n.mean()),
        "cosine_above_unpaired": 0.0,
        "cka": cka_chance,
    }
    return Similarities(
        torch.stack([by_sentence[name] for name in MEASURES]),
        torch.tensor([chance[name] for name in MEASURES], dtype=torch.float64),
    )


def _cosines(own_nD: Tensor, other_nD: Tensor) -> Tensor:
    """Of every two sentences, `[n, n]`; 0 with one that is represented by zeros."""
    return torch.nn.functional.normalize(own_nD, dim=1) @ torch.nn.functional.normalize(other_nD, dim=1).T


def _retrieved(cosines_nn: Tensor) -> Tensor:
    """Whether the nearest column of each row is its own, `[n]`; of k equally near ones each is right by 1/k."""
    nearest = cosines_nn >= cosines_nn.max(dim=1, keepdim=True).values - _TIE
    return nearest.diagonal().double() / nearest.sum(1)


def _unpaired(cosines_nn: Tensor) -> Tensor:
    """Mean cosine of each sentence with all others of the other language, both ways, `[n]`."""
    sums = (cosines_nn.sum(0) + cosines_nn.sum(1)) / 2
    return (sums - cosines_nn.diagonal()) / (len(cosines_nn) - 1)


def _cka(own_nD: Tensor, other_nD: Tensor) -> tuple[Tensor, float]:
    """Linear CKA of centred representations: value plus influence of each sentence `[n]`, and the value for shuffled pairs.

    With Gram matrices K and L, CKA = sum(K * L) / sqrt(sum(K * K) sum(L * L)). Sentence i's influence is n times the derivative
    by its weight. As rows of K and L sum to 0, re-centring adds nothing to it, and d sum(K * L) / d w_i = 2 (K * L).sum of row i.
    Over all permutations of the rows and columns of L alone, the mean of sum(K * L) is tr K tr L / (n - 1).
    """
    own_nn, other_nn = own_nD @ own_nD.T, other_nD @ other_nD.T
    n = len(own_nn)
    shared_n, own_n, other_n = (
        (left * right).sum(1) for left, right in ((own_nn, other_nn), (own_nn, own_nn), (other_nn, other_nn))
    )
    shared, own, other = (float(part.sum()) for part in (shared_n, own_n, other_n))
    if own == 0 or other == 0:
        raise UserError(
            "all sentences of a language have one representation: the model does not tell them apart, so nothing can be aligned"
        )
    scale = (own * other) ** 0.5
    value = shared / scale
    influence_n = n * (2 * shared_n / scale - value * (own_n / own + other_n / other))
    chance = float(own_nn.trace() * other_nn.trace()) / (n - 1) / scale
    return value + influence_n, chance
