"""A language pack: what training made of some neurons, beside what the base model has there. Small and exact.

After training: base model + pack is the exported model, bit for bit, without a second copy of the weights on disk. As
`pack.safetensors`:

    layers.<layer>.neurons             int64 [n], sorted; in a mixture of experts expert x intermediate size + i
    layers.<layer>.<projection>.new    [n, D], a vector for each neuron: its row of gate_proj or up_proj, its column of down_proj
    layers.<layer>.<projection>.base   the same of the base model

Layers without a neuron and, in ungated blocks, gate_proj are left out. The base's values make the way back exact and tell a
model that is not the base, or that holds a pack already.

Shape legend: n neurons of one layer, D hidden size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lape_ds.errors import UserError
from lape_ds.model.ffn import FFNLayer, Projection, WeightSlice, ffn_layers
from lape_ds.neurons.artefact import load_artefact, save_artefact
from lape_ds.subnetwork.entries import bits, entry_masks

SCHEMA_VERSION = 1
KIND = "language pack"
COMMAND = "lape-ds pack make RUN"
_PROJECTIONS: tuple[Projection, ...] = ("gate_proj", "up_proj", "down_proj")

Vectors = dict[int, dict[Projection, Tensor]]  # by layer: of its neurons [n, D]
_Side = Literal["new", "base"]


@dataclass(frozen=True, eq=False)
class Pack:
    """Some neurons' weights as trained and as they were.

    Attributes:
        neurons: int32 [n, 2] of (layer, index), sorted, without repeats.
        new: After training, in the dtype of the training.
        base: Before it, in the same dtype.
        base_fingerprint: Of the base model's weights (model/loading.py).
        base_model: Its path or hub id, for people.
        languages: Canonical codes that were trained.
        origin: JSON values that tell where the pack is from: method, step and so on.
        base_revision: Of a base on the hub, the one that the recipe pins.
    """

    neurons: Tensor
    new: Vectors
    base: Vectors
    base_fingerprint: str
    base_model: str
    languages: tuple[str, ...]
    origin: Mapping[str, Any]
    base_revision: str | None = None

    @property
    def num_entries(self) -> int:
        """Weights that it holds, counted once."""
        return sum(vectors.numel() for layer in self.new.values() for vectors in layer.values())

    def apply(self, model: nn.Module, *, base_fingerprint: str) -> None:
        """Makes of the base model, in memory, the trained one: as if the exported folder had been loaded in its dtype.

        Args:
            model: The base as loaded, in any dtype and on any device, not partitioned.
            base_fingerprint: `fingerprint(folder)` of the folder that it was loaded from.

        Raises:
            UserError: The pack is of another base, or the weights in memory are not the base's (any more). Nothing is
                changed then.
        """
        if base_fingerprint != self.base_fingerprint:
            raise UserError(
                f"the language pack is of another base model: made on {self.base_model} with weights "
                f"{self.base_fingerprint[:16]}, this model's are {base_fingerprint[:16]}; load the model that it was made on"
            )
        self._replace(model, old="base", by="new")

    def revert(self, model: nn.Module) -> None:
        """Takes the pack out again: every bit is as it was before `apply`.

        Raises:
            UserError: The model does not hold the pack, or was changed since. Nothing is changed then.
        """
        self._replace(model, old="new", by="base")

    @torch.no_grad()
    def _replace(self, model: nn.Module, *, old: _Side, by: _Side) -> None:
        entry_masks(model, self.neurons)  # refuses neurons that the model does not have
        expected, values = getattr(self, old), getattr(self, by)
        places = [
            (layer, part, self._index(layer.index))
            for layer in ffn_layers(model)
            if layer.index in expected
            for part in layer.slices
        ]
        for layer, part, index in places:
            found = _read(layer, part, index)
            wanted = expected[layer.index][part.projection].to(found)
            if not torch.equal(bits(found), bits(wanted)):
                raise UserError(
                    f"{part.parameter_name} does not hold the {'base' if old == 'base' else 'pack'}'s values: the model was "
                    f"changed since it was loaded, {'holds a pack already' if old == 'base' else 'does not hold this pack'}, or "
                    f"its weights were rounded to another dtype than that of the training ({self._dtype})"
                )
        for layer, part, index in places:
            _write(layer, part, index, values[layer.index][part.projection])

    def _index(self, layer: int) -> Tensor:
        return self.neurons[self.neurons[:, 0] == layer, 1].long()

    @property
    def _dtype(self) -> str:
        vectors = next(iter(next(iter(self.new.values())).values()))
        return str(vectors.dtype).removeprefix("torch.")

    def save(self, path: Path) -> None:
        """Writes the pack, whole or not at all."""
        tensors = {f"layers.{layer}.neurons": self._index(layer) for layer in self.new}
        for side, by_layer in (("new", self.new), ("base", self.base)):
            for layer, vectors in by_layer.items():
                tensors |= {f"layers.{layer}.{name}.{side}": values for name, values in vectors.items()}
        metadata = {
            "base_fingerprint": self.base_fingerprint,
            "base_model": self.base_model,
            "languages": json.dumps(self.languages),
            "origin": json.dumps(dict(self.origin)),
            "sha256": _digest(tensors),
        }
        if self.base_revision is not None:
            metadata["base_revision"] = self.base_revision
        save_artefact(path, tensors, kind=KIND, schema_version=SCHEMA_VERSION, metadata=metadata)

    @classmethod
    def load(cls, path: Path | str) -> Pack:
        """Reads what `save` wrote.

        Raises:
            UserError: Not a language pack, or a damaged one.
        """
        tensors, metadata = load_artefact(
            Path(path), kind=KIND, schema_version=SCHEMA_VERSION, command=COMMAND
        )
        if metadata.get("sha256") != _digest(tensors):
            raise UserError(
                f"{path} is damaged: its content is not what was written; fetch it or make it again"
            )
        layers = sorted(int(name.split(".")[1]) for name in tensors if name.endswith(".neurons"))
        index = {layer: tensors[f"layers.{layer}.neurons"] for layer in layers}
        neurons = [
            torch.stack([torch.full_like(values, layer), values], dim=1) for layer, values in index.items()
        ]

        def vectors(layer: int, side: _Side) -> dict[Projection, Tensor]:
            names: dict[Projection, str] = {part: f"layers.{layer}.{part}.{side}" for part in _PROJECTIONS}
            return {part: tensors[name] for part, name in names.items() if name in tensors}

        return cls(
            neurons=torch.cat(neurons).int(),
            new={layer: vectors(layer, "new") for layer in layers},
            base={layer: vectors(layer, "base") for layer in layers},
            base_fingerprint=metadata["base_fingerprint"],
            base_model=metadata["base_model"],
            languages=tuple(json.loads(metadata["languages"])),
            origin=json.loads(metadata["origin"]),
            base_revision=metadata.get("base_revision"),
        )


@torch.no_grad()
def neuron_vectors(model: nn.Module, neurons: Tensor) -> Vectors:
    """Copies some neurons' weights out of a model, to the CPU.

    Args:
        model: Of an architecture that model/ffn.py knows, not partitioned.
        neurons: integer [n, 2] of (layer, index), sorted, without repeats.

    Raises:
        UserError: A neuron lies outside the model, or none is given.
    """
    entry_masks(model, neurons)
    found: Vectors = {}
    for layer in ffn_layers(model):
        index = neurons[neurons[:, 0] == layer.index, 1].long()
        if len(index):
            found[layer.index] = {part.projection: _read(layer, part, index).cpu() for part in layer.slices}
    return found


def _read(layer: FFNLayer, part: WeightSlice, index: Tensor) -> Tensor:
    """A copy of the neurons' vectors, [n, D]."""
    experts, expert, inside = _place(layer, part, index)
    return experts[expert, inside] if part.axis == 0 else experts[expert, :, inside]


def _write(layer: FFNLayer, part: WeightSlice, index: Tensor, values: Tensor) -> None:
    """Writes the neurons' vectors in place, in the weight's dtype."""
    experts, expert, inside = _place(layer, part, index)
    if part.axis == 0:
        experts[expert, inside] = values.to(experts)
    else:
        experts[expert, :, inside] = values.to(experts)


def _place(layer: FFNLayer, part: WeightSlice, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weight as [experts, rows, cols] (a dense one is of one expert), and each neuron's expert and row or column."""
    weight = part.parameter.detach()
    index = index.to(weight.device)
    experts = weight.view(layer.num_experts, *weight.shape[-2:])
    return experts, index // layer.neurons_per_expert, part.offset + index % layer.neurons_per_expert


def _digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name].contiguous()
        total.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        total.update(cast(Any, values.reshape(-1).view(torch.uint8).numpy()).data)
    return total.hexdigest()
