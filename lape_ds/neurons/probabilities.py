"""Activation probabilities of many languages, held as the integers that they come from.

Between counts and selection. 300 languages x 40 layers x 14336 neurons are 1.4 GB in float64 and half of that as counts, so
nothing here makes them floating-point numbers but a piece at a time.

Shape legend: N = L · I neurons of all layers, K languages, n neurons of a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_DIGIT = 16  # bits of a float64 that one pass of `kth_smallest` learns
_GATHERED = 2**24  # so many values with the same leading bits are looked at as they are


@dataclass(frozen=True, eq=False)
class Probabilities:
    """p(activation > 0) of every neuron in every language.

    Attributes:
        active: Per language, `[N]`: tokens on which the neuron was active; int32, or int64 where there were more tokens
            than int32 holds; probabilities, if there was one token.
        tokens: Per language: all tokens.
        num_layers: L.
    """

    active: tuple[Tensor, ...]
    tokens: tuple[int, ...]
    num_layers: int

    @classmethod
    def from_tensor(cls, probs_LIK: Tensor) -> Probabilities:
        """Takes probabilities as they are: those of one token."""
        columns = tuple(probs_LI.flatten() for probs_LI in probs_LIK.unbind(-1))
        return cls(columns, (1,) * len(columns), len(probs_LIK))

    @property
    def num_neurons(self) -> int:
        """N: those of all layers."""
        return len(self.active[0])

    @property
    def neurons_per_layer(self) -> int:
        """I."""
        return self.num_neurons // self.num_layers

    def languages(self) -> Iterator[Tensor]:
        """One language after the other, float64 `[N]`."""
        for active_N, num_tokens in zip(self.active, self.tokens, strict=True):
            yield active_N.double() / num_tokens

    def of_neurons(self, neurons_n: Tensor) -> Tensor:
        """Some neurons in all languages, float64 `[K, n]`.

        Args:
            neurons_n: Their numbers, layer · I + index.
        """
        return torch.stack(
            [
                active_N[neurons_n].double() / num_tokens
                for active_N, num_tokens in zip(self.active, self.tokens, strict=True)
            ]
        )


def percentiles(values: Tensor | Callable[[], Iterator[Tensor]], *rates: float) -> list[float]:
    """For each rate the `round(n · rate)`-th smallest of all n values, at least the smallest.

    Works for any n, where `torch.quantile` stops at 16.7 M.

    Args:
        values: Of any shape and at least 0; or what yields them in pieces, every time anew.
        rates: Shares, above 0 and at most 1.
    """
    pieces = (lambda: iter(values.flatten().split(_GATHERED))) if isinstance(values, Tensor) else values
    number = sum(piece.numel() for piece in pieces())
    if number <= _GATHERED:
        whole = torch.cat([piece.flatten().double().abs() for piece in pieces()])
        return [float(whole.kthvalue(max(1, round(number * rate))).values) for rate in rates]
    found = {rate: kth_smallest(pieces, max(1, round(number * rate))) for rate in set(rates)}
    return [found[rate] for rate in rates]


def kth_smallest(pieces: Callable[[], Iterator[Tensor]], k: int) -> float:
    """The k-th smallest of values that need not be in memory together, exactly as `kthvalue` would find it.

    Numbers of at least 0 are in the order of their bits. Each pass over the pieces learns 16 more leading bits of the one
    that is sought, by a histogram, until those that begin like it are few enough to be put into one tensor.

    Args:
        pieces: Yields the values, at least 0 and not NaN, every time anew.
        k: From 1.
    """
    prefix, below = 0, 0  # the leading bits; how many values are less than every one that begins with them
    for shift in range(64 - _DIGIT, -1, -_DIGIT):
        histogram = torch.zeros(2**_DIGIT, dtype=torch.int64)
        for piece in pieces():
            bits = _alike(piece, prefix, shift + _DIGIT) >> shift
            histogram += torch.bincount(bits & (2**_DIGIT - 1), minlength=2**_DIGIT)
        up_to = below + histogram.cumsum(0)
        digit = int((up_to < k).sum())
        below = int(up_to[digit] - histogram[digit])
        prefix = prefix << _DIGIT | digit
        if int(histogram[digit]) <= _GATHERED:
            alike = torch.cat([_alike(piece, prefix, shift) for piece in pieces()])
            return float(alike.kthvalue(k - below).values.view(torch.float64))
    return float(torch.tensor(prefix).view(torch.float64))  # more equal values than would be gathered


def _alike(values: Tensor, prefix: int, shift: int) -> Tensor:
    """The bits, int64, of those values whose bits above the `shift` lowest are `prefix`."""
    bits = values.double().abs().view(torch.int64)  # abs: the bits of -0 would be a negative number
    return bits if shift == 64 else bits[bits >> shift == prefix]
