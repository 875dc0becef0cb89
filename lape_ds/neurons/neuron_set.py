"""NeuronSet: which neurons belong to which language, as a typed artefact.

Comes out of LAPE selection (or an import of a published set), goes into training, packs and analysis, as
`neurons.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.neurons.artefact import load_artefact, save_artefact

SCHEMA_VERSION = 1
_KIND = "neuron set"
_CONFIDENCE = "confidence/"  # before a language's code: the name of that tensor


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """Neurons per language, and the model in which they are neurons.

    Attributes:
        indices: Language code to int32 `[n, 2]` of (layer, index), sorted, without repeats; `n` may be 0. The
            order of the languages is the order in which they were compared.
        num_layers: Decoder layers of the model.
        neurons_per_layer: `intermediate_size` of the model; times `experts_per_layer` in a mixture of experts, where
            index = expert × intermediate size + i.
        model_id: Path or hub id, for people.
        model_fingerprint: Of the weights (model/loading.py), for machines; "" where it is not known (imported
            sets).
        method: How it was made: as `identify.method` says, or "random", "topk" (controls), "import".
        knobs: The method's settings, JSON values.
        experts_per_layer: 1 in a dense model.
        confidence: Language code to float32 `[n]`, beside its `indices`: the share of bootstrap resamples in which the neuron
            is selected for the language (stability.py). None where nobody has measured it; sets that are derived from others
            (controls, unions, exports) have none.

    Raises:
        UserError: `indices` or `confidence` are not as described.
    """

    indices: Mapping[str, Tensor]
    num_layers: int
    neurons_per_layer: int
    model_id: str
    model_fingerprint: str
    method: str
    knobs: Mapping[str, Any]
    experts_per_layer: int = 1
    confidence: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        for code, neurons in self.indices.items():
            self._check_indices(code, neurons)
            if self.confidence is not None:
                self._check_confidence(code, self.confidence.get(code))

    def _check_indices(self, code: str, neurons: Tensor) -> None:
        if neurons.dtype != torch.int32 or neurons.dim() != 2 or neurons.shape[1] != 2:
            raise UserError(
                f"neurons of {code} are {neurons.dtype} {list(neurons.shape)}; an int32 [n, 2] is needed"
            )
        bounds = torch.tensor([self.num_layers, self.neurons_per_layer])
        if bool(((neurons < 0) | (neurons >= bounds)).any()):
            raise UserError(
                f"neurons of {code} reach outside the model of {self.num_layers} layers × "
                f"{self.neurons_per_layer} neurons; "
                "this set was made for another model"
            )
        if bool((self._flat(neurons).diff() <= 0).any()):
            raise UserError(f"neurons of {code} are not sorted, or one is named twice; write the set again")

    def _check_confidence(self, code: str, confidence: Tensor | None) -> None:
        number = len(self.indices[code])
        if confidence is None or confidence.dtype != torch.float32 or confidence.shape != (number,):
            found = None if confidence is None else f"{confidence.dtype} {list(confidence.shape)}"
            raise UserError(
                f"confidences of {code} are {found}; a float32 [{number}] is needed, one for a neuron"
            )
        if not bool(((confidence >= 0) & (confidence <= 1)).all()):
            raise UserError(f"confidences of {code} must lie in [0, 1]; write the set again")

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes, in the order in which they were compared."""
        return tuple(self.indices)

    def neurons(self, code: str) -> Tensor:
        """One language's neurons, int32 `[n, 2]`.

        Raises:
            UserError: The set lacks the language.
        """
        if code not in self.indices:
            raise UserError(
                f"the neuron set has no language {code}; it has {', '.join(self.indices) or 'none'}: "
                "add it to `languages.identify` and run `lape-ds identify` again"
            )
        return self.indices[code]

    def only(self, *codes: str) -> NeuronSet:
        """The set of some of its languages, in the order given.

        Raises:
            UserError: The set lacks one.
        """
        indices = {code: self.neurons(code) for code in codes}
        confidence = None if self.confidence is None else {code: self.confidence[code] for code in codes}
        return replace(self, indices=indices, confidence=confidence)

    def num_neurons(self, code: str) -> int:
        """How many neurons a language has."""
        return len(self.neurons(code))

    def per_layer(self, *codes: str) -> list[Tensor]:
        """The neurons of one or several languages (their union), layer by layer.

        Returns:
            `num_layers` sorted int64 tensors of indices; empty where a layer has none.
        """
        neurons = self.union(*codes)
        counts = torch.bincount(neurons[:, 0].long(), minlength=self.num_layers)
        return list(neurons[:, 1].long().split(counts.tolist()))

    def union(self, *codes: str) -> Tensor:
        """Neurons of at least one of the languages, sorted int32 `[n, 2]`."""
        return self._unflat(torch.cat([self._flat(self.neurons(code)) for code in codes]).unique())

    def intersection(self, *codes: str) -> Tensor:
        """Neurons that all of the languages share, sorted int32 `[n, 2]`."""
        shared = self._flat(self.neurons(codes[0]))
        for code in codes[1:]:
            shared = shared[torch.isin(shared, self._flat(self.neurons(code)))]
        return self._unflat(shared)

    def difference(self, code: str, *others: str) -> Tensor:
        """Neurons of `code` that none of `others` has, sorted int32 `[n, 2]`."""
        own = self._flat(self.neurons(code))
        return (
            self._unflat(own[~torch.isin(own, self._flat(self.union(*others)))])
            if others
            else self.neurons(code)
        )

    def jaccard(self, first: str, second: str) -> float:
        """Shared share of two languages' neurons, |A ∩ B| / |A ∪ B|; 0 where both are empty."""
        either = len(self.union(first, second))
        return len(self.intersection(first, second)) / either if either else 0.0

    def random_like(self, *codes: str, seed: int) -> NeuronSet:
        """A control set: as many random neurons in every layer as the languages together have there.

        They are drawn outside the languages' own neurons, so that nothing of the effect under test is in the
        control; where a layer has too few others, the rest is drawn from its own.

        Args:
            codes: The languages to imitate, which share one draw: a draw each would overlap, and could hold
                another's neurons. The result has one entry, named by the codes joined with "+".
            seed: Same seed, same set, on any machine (drawn on the CPU).
        """
        generator = torch.Generator().manual_seed(seed)

        def draw(layer: int, own: Tensor) -> Tensor:
            is_own = torch.zeros(self.neurons_per_layer, dtype=torch.bool)
            is_own[own] = True
            order = torch.randperm(self.neurons_per_layer, generator=generator)
            return order[is_own[order].to(torch.uint8).argsort(stable=True)]

        return self._like(codes, draw, method="random", seed=seed)

    def most_active_like(self, *codes: str, probs_LI: Tensor) -> NeuronSet:
        """A control set: in every layer as many neurons as the languages together have there, the most active ones.

        It asks whether LAPE's choice, language-specific neurons, does better than neurons that simply fire often.

        Args:
            codes: The languages to imitate. The result has one entry, named by the codes joined with "+".
            probs_LI: Activation probabilities on the languages' text; ties break by index.
        """

        def most_active_first(layer: int, own: Tensor) -> Tensor:
            return probs_LI[layer].sort(descending=True, stable=True).indices

        return self._like(codes, most_active_first, method="topk")

    def _like(
        self, codes: Sequence[str], order: Callable[[int, Tensor], Tensor], *, method: str, **knobs: Any
    ) -> NeuronSet:
        """As many neurons in every layer as the languages together have there: the first of `order(layer, own)`."""
        rows = []
        for layer, own in enumerate(self.per_layer(*codes)):
            taken = order(layer, own)[: len(own)].sort().values
            rows.append(torch.stack([torch.full_like(taken, layer), taken], dim=1))
        return replace(
            self,
            indices={"+".join(codes): torch.cat(rows).int()},
            method=method,
            knobs={"like": self.method, **knobs},
            confidence=None,
        )

    def check_model(self, fingerprint: str, *, num_layers: int, neurons_per_layer: int) -> None:
        """Makes sure that the set belongs to this model: its shape, and its weights where the set knows them.

        Raises:
            UserError: It was made from another model.
        """
        if (num_layers, neurons_per_layer) != (self.num_layers, self.neurons_per_layer):
            raise UserError(
                f"the neuron set is of another model: {self.num_layers} layers × {self.neurons_per_layer} "
                f"neurons ({self.model_id}), "
                f"the model has {num_layers} × {neurons_per_layer}; run `lape-ds identify` on this model"
            )
        if self.model_fingerprint and self.model_fingerprint != fingerprint:
            raise UserError(
                f"the neuron set is of another model: made from weights {self.model_fingerprint[:16]} "
                f"({self.model_id}), the model's are "
                f"{fingerprint[:16]}; run `lape-ds identify` on this model or set `train.neurons` to its set"
            )

    def save(self, path: Path) -> None:
        """Writes the set, whole or not at all."""
        metadata = {
            "languages": json.dumps(self.languages),
            "num_layers": str(self.num_layers),
            "neurons_per_layer": str(self.neurons_per_layer),
            "experts_per_layer": str(self.experts_per_layer),
            "model_id": self.model_id,
            "model_fingerprint": self.model_fingerprint,
            "method": self.method,
            "knobs": json.dumps(self.knobs),
        }
        tensors = dict(self.indices)
        for code, confidence in (self.confidence or {}).items():
            tensors[_CONFIDENCE + code] = confidence
        save_artefact(path, tensors, kind=_KIND, schema_version=SCHEMA_VERSION, metadata=metadata)

    @classmethod
    def load(cls, path: Path | str) -> NeuronSet:
        """Reads what `save` wrote.

        Raises:
            UserError: Not a neuron set, or a damaged one.
        """
        tensors, metadata = load_artefact(Path(path), kind=_KIND, schema_version=SCHEMA_VERSION)
        try:
            codes: list[str] = json.loads(metadata["languages"])
            confidence = {
                code: tensors[_CONFIDENCE + code] for code in codes if _CONFIDENCE + code in tensors
            }
            return cls(
                indices={code: tensors[code] for code in codes},
                num_layers=int(metadata["num_layers"]),
                neurons_per_layer=int(metadata["neurons_per_layer"]),
                model_id=metadata["model_id"],
                model_fingerprint=metadata["model_fingerprint"],
                method=metadata["method"],
                knobs=json.loads(metadata["knobs"]),
                # Sets from before mixtures of experts do not say it.
                experts_per_layer=int(metadata.get("experts_per_layer", "1")),
                confidence=confidence or None,  # nor had they any
            )
        except KeyError as error:
            raise UserError(
                f"{path} lacks {error} that its metadata should name; write it again with `lape-ds identify`"
            ) from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def _flat(self, neurons: Tensor) -> Tensor:
        """int32 `[n, 2]` to int64 `[n]`: layer × neurons_per_layer + index."""
        return neurons[:, 0].long() * self.neurons_per_layer + neurons[:, 1].long()

    def _unflat(self, flat: Tensor) -> Tensor:
        """The way back."""
        return torch.stack([flat // self.neurons_per_layer, flat % self.neurons_per_layer], dim=1).int()
