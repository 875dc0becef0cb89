"""Where a neuron set's neurons are, and which languages and families share them: figures and text of `lape-ds neurons`.

After selection; the pictures are made from these figures (pictures.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from lape_ds.neurons.families import families
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.neurons.stability import SURE, UNSURE, ConfidenceSummary

_WHOLE_MATRIX = 20  # of more languages the text shows each one's nearest
_NEAREST = 5


@dataclass(frozen=True)
class LanguageLayers:
    """One language's neurons: how many in every layer, and how many that no other language has."""

    code: str
    family: str
    per_layer: tuple[int, ...]
    own: int

    @property
    def total(self) -> int:
        """In all layers."""
        return sum(self.per_layer)


@dataclass(frozen=True)
class Layers:
    """What `lape-ds neurons show` tells of a set."""

    neuron_set: NeuronSet
    languages: tuple[LanguageLayers, ...]
    distinct: int

    @classmethod
    def of(cls, neuron_set: NeuronSet) -> Layers:
        """Counts them."""
        codes = neuron_set.languages
        flat = [flat_neurons(neuron_set, code) for code in codes]
        distinct, times = torch.cat(flat).unique(return_counts=True)
        alone = distinct[times == 1]
        languages = [
            LanguageLayers(
                code,
                family,
                tuple(len(layer) for layer in neuron_set.per_layer(code)),
                int(torch.isin(neurons, alone).sum()),
            )
            for code, family, neurons in zip(codes, set_families(neuron_set), flat, strict=True)
        ]
        return cls(neuron_set, tuple(languages), len(distinct))

    def lines(self) -> Iterator[str]:
        """For a terminal: the set, a line for every language, the sum."""
        found = self.neuron_set
        everything = found.num_layers * found.neurons_per_layer
        experts = f" in {found.experts_per_layer} experts" if found.experts_per_layer > 1 else ""
        yield (
            f"{found.model_id}: {found.num_layers} layers x {found.neurons_per_layer} neurons{experts}, {found.method}"
        )
        for one in self.languages:
            per_layer = " ".join(str(number) for number in one.per_layer)
            yield (
                f"{one.code:10} {one.total:8,} ({100 * one.total / everything:.3f} %), {one.own:,} its own; "
                f"per layer: {per_layer}"
            )
        yield f"{'distinct':10} {self.distinct:8,} ({100 * self.distinct / everything:.3f} %)"
        if found.confidence is not None and (sure := _confidence(*found.confidence.values())) is not None:
            yield (
                f"confidence {sure.mean:.3f} on average; {sure.num_sure:,} neurons of languages above {SURE}, "
                f"{sure.num_unsure:,} below {UNSURE}"
            )

    def as_json(self) -> dict[str, Any]:
        """The same, for machines."""
        found = self.neuron_set
        return {
            "model_id": found.model_id,
            "model_fingerprint": found.model_fingerprint,
            "num_layers": found.num_layers,
            "neurons_per_layer": found.neurons_per_layer,
            "experts_per_layer": found.experts_per_layer,
            "method": found.method,
            "distinct": self.distinct,
            "confidence": None if found.confidence is None else _confidence_json(*found.confidence.values()),
            "languages": {
                one.code: {
                    "family": one.family,
                    "neurons": one.total,
                    "own": one.own,
                    "per_layer": list(one.per_layer),
                    "confidence": (
                        None if found.confidence is None else _confidence_json(found.confidence[one.code])
                    ),
                }
                for one in self.languages
            },
        }


@dataclass(frozen=True)
class Overlap:
    """How many neurons every two languages, or families, share.

    Attributes:
        names: Of the languages or families; relatives stand together.
        families: Of each name.
        shared: `[names][names]`, neurons of both; on the diagonal all that one has.
    """

    names: tuple[str, ...]
    families: tuple[str, ...]
    shared: tuple[tuple[int, ...], ...]

    @classmethod
    def of_languages(cls, neuron_set: NeuronSet) -> Overlap:
        """Between languages."""
        family_of = dict(zip(neuron_set.languages, set_families(neuron_set), strict=True))
        codes = by_family(family_of)
        groups = {code: flat_neurons(neuron_set, code) for code in codes}
        return cls(tuple(codes), tuple(family_of[code] for code in codes), _shared(groups))

    @classmethod
    def of_families(cls, neuron_set: NeuronSet) -> Overlap:
        """Between families, each with the neurons that any of its languages has."""
        family_of = dict(zip(neuron_set.languages, set_families(neuron_set), strict=True))
        groups = {
            family: torch.cat(
                [flat_neurons(neuron_set, code) for code, other in family_of.items() if other == family]
            ).unique()
            for family in dict.fromkeys(family_of.values())
        }
        return cls(tuple(groups), tuple(groups), _shared(groups))

    def jaccard(self, first: int, second: int) -> float:
        """|A ∩ B| / |A ∪ B| of two names by their place; 0 where both are empty."""
        either = self.shared[first][first] + self.shared[second][second] - self.shared[first][second]
        return self.shared[first][second] / either if either else 0.0

    def means(self) -> tuple[float | None, float | None]:
        """Mean Jaccard of two languages of one family, and of two of different ones; None where there are no such two."""
        within, between = [], []
        for first, family in enumerate(self.families):
            for second in range(first):
                (within if self.families[second] == family else between).append(self.jaccard(first, second))
        return fmean(within) if within else None, fmean(between) if between else None

    def told_means(self) -> str:
        """The same in words."""
        told = [
            f"{mean:.3f} {where}"
            for mean, where in zip(self.means(), ("within a family", "between families"), strict=True)
            if mean is not None
        ]
        return f"mean Jaccard of two: {', '.join(told) or 'there are no two'}"

    def lines(self) -> Iterator[str]:
        """For a terminal: the matrices of shared neurons and of Jaccard similarities; of many names each one's nearest."""
        width = max(10, *(len(name) + 1 for name in self.names))
        places = range(len(self.names))
        if len(self.names) <= _WHOLE_MATRIX:
            yield from self._matrix("shared", width, lambda first, second: f"{self.shared[first][second]:,}")
            yield ""
            yield from self._matrix(
                "Jaccard", width, lambda first, second: f"{self.jaccard(first, second):.3f}"
            )
        else:
            for first, name in enumerate(self.names):
                others = sorted(set(places) - {first}, key=lambda second: -self.jaccard(first, second))
                nearest = ", ".join(
                    f"{self.names[second]} {self.jaccard(first, second):.3f} ({self.shared[first][second]:,})"
                    for second in others[:_NEAREST]
                )
                yield f"{name:{width}}nearest by Jaccard (shared): {nearest}"
        yield self.told_means()

    def _matrix(self, title: str, width: int, cell: Callable[[int, int], str]) -> Iterator[str]:
        places = range(len(self.names))
        yield f"{title:{width}}" + "".join(f"{name:>{width}}" for name in self.names)
        for first, name in enumerate(self.names):
            yield f"{name:{width}}" + "".join(f"{cell(first, second):>{width}}" for second in places)

    def as_json(self) -> dict[str, Any]:
        """For machines, the whole matrices."""
        within, between = self.means()
        places = range(len(self.names))
        return {
            "names": list(self.names),
            "families": list(self.families),
            "shared": [list(row) for row in self.shared],
            "jaccard": [[self.jaccard(first, second) for second in places] for first in places],
            "mean_within_families": within,
            "mean_between_families": between,
        }


def _confidence(*confidence: Tensor) -> ConfidenceSummary | None:
    return ConfidenceSummary.of(torch.cat(confidence)) if confidence else None


def _confidence_json(*confidence: Tensor) -> dict[str, float] | None:
    summary = _confidence(*confidence)
    return None if summary is None else summary.as_json()


def set_families(neuron_set: NeuronSet) -> list[str]:
    """The family of every language of a set, in order; as it was selected, if it was selected by family."""
    chosen: Mapping[str, str] = neuron_set.knobs.get("families", {})
    return families(neuron_set.languages, chosen)


def by_family(family_of: Mapping[str, str]) -> list[str]:
    """Languages with their relatives beside them, families in the order of their first language; last those without relatives."""
    sizes = Counter(family_of.values())
    order = list(dict.fromkeys(family_of.values()))
    return sorted(family_of, key=lambda code: (sizes[family_of[code]] == 1, order.index(family_of[code])))


def flat_neurons(neuron_set: NeuronSet, code: str) -> Tensor:
    """int64 `[n]`, layer · neurons_per_layer + index, sorted."""
    layer, index = neuron_set.neurons(code).long().unbind(1)
    return layer * neuron_set.neurons_per_layer + index


def _shared(groups: Mapping[str, Tensor]) -> tuple[tuple[int, ...], ...]:
    """How many neurons every two groups share: the product of who has which with itself."""
    distinct = torch.cat(list(groups.values())).unique()
    has = torch.stack([torch.isin(distinct, neurons) for neurons in groups.values()]).double()
    return tuple(tuple(row) for row in (has @ has.T).long().tolist())
