"""A language pack: what training made of some neurons, beside what the base model has there. Small and exact.

After training: base model + pack is the exported model, bit for bit, without a second copy of the weights on disk. As
`pack.safetensors`:

    layers.<layer>.neurons             int64 [n], sorted; in a mixture of experts expert x intermediate size + i
    layers.<layer>.<projection>.new    [n, D], a vector for each neuron: its row of gate_proj or up_proj, its column of down_proj
    layers.<layer>.<projection>.base   the same of the base model

Layers without a neuron and, in ungated blocks, gate_proj are left out. The base's values make the way back exact and tell a
model that is not the base, or that holds a pack already.

    with language(model, Pack.load("pack.safetensors")):
        model.generate(...)

Shape legend: n neurons of one layer, D hidden size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lape_ds.errors import UserError
from lape_ds.model.ffn import Projection, ffn_layers
from lape_ds.neurons.artefact import load_artefact, save_artefact
from lape_ds.subnetwork.entries import bits, check_neurons
from lape_ds.subnetwork.vectors import NeuronEntries, Vectors

SCHEMA_VERSION = 1
KIND = "language pack"
COMMAND = "lape-ds pack make RUN"
PROJECTIONS: tuple[Projection, ...] = ("gate_proj", "up_proj", "down_proj")

# What the hash is not of: itself, and what is checked by itself.
_ENVELOPE = ("sha256", "kind", "schema_version")

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
        languages: Canonical codes that were trained; none where that is not known.
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

    @property
    def title(self) -> str:
        """The languages, for people."""
        return ", ".join(self.languages) or "an untold language"

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
        places = _places(model, self)
        _check(places, self, "base")
        _write(places, "new")

    def is_in(self, model: nn.Module) -> bool:
        """Whether the model holds the pack, as after `apply`."""
        try:
            places = _places(model, self)
        except UserError:  # it has not even these neurons
            return False
        return _other_than(places, "new") is None

    def revert(self, model: nn.Module) -> None:
        """Takes the pack out again: every bit is as it was before `apply`.

        Raises:
            UserError: The model does not hold the pack, or was changed since. Nothing is changed then.
        """
        places = _places(model, self)
        _check(places, self, "new")
        _write(places, "base")

    def index(self, layer: int) -> Tensor:
        """Its neurons of one layer, int64 [n], sorted."""
        return self.neurons[self.neurons[:, 0] == layer, 1].long()

    @property
    def dtype(self) -> str:
        """Of the training: "float32" or "bfloat16"."""
        vectors = next(iter(next(iter(self.new.values())).values()))
        return str(vectors.dtype).removeprefix("torch.")

    def save(self, path: Path) -> None:
        """Writes the pack, whole or not at all."""
        tensors = {f"layers.{layer}.neurons": self.index(layer) for layer in self.new}
        for side, by_layer in (("new", self.new), ("base", self.base)):
            for layer, vectors in by_layer.items():
                tensors |= {f"layers.{layer}.{name}.{side}": values for name, values in vectors.items()}
        metadata = {
            "base_fingerprint": self.base_fingerprint,
            "base_model": self.base_model,
            "languages": json.dumps(self.languages),
            "origin": json.dumps(dict(self.origin)),
        }
        if self.base_revision is not None:
            metadata["base_revision"] = self.base_revision
        metadata["sha256"] = _digest(tensors, metadata)
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
        told = {name: value for name, value in metadata.items() if name not in _ENVELOPE}
        if metadata.get("sha256") != _digest(tensors, told):
            raise UserError(
                f"{path} is damaged: its content is not what was written; fetch it or make it again"
            )
        try:
            return cls._of(tensors, told)
        except KeyError as error:
            raise UserError(
                f"{path} is no whole language pack: it lacks {error}; make it again with `{COMMAND}`"
            ) from error

    @classmethod
    def _of(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Pack:
        """Puts a file's content together; raises KeyError where something is missing."""
        layers = sorted(int(name.split(".")[1]) for name in tensors if name.endswith(".neurons"))
        if not layers:
            raise KeyError("layers.<layer>.neurons")
        index = {layer: tensors[f"layers.{layer}.neurons"] for layer in layers}
        neurons = [
            torch.stack([torch.full_like(values, layer), values], dim=1) for layer, values in index.items()
        ]

        def vectors(layer: int, side: _Side) -> dict[Projection, Tensor]:
            names: dict[Projection, str] = {part: f"layers.{layer}.{part}.{side}" for part in PROJECTIONS}
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


@contextmanager
def language(model: nn.Module, pack: Pack) -> Iterator[None]:
    """Holds a pack in a model while the block runs; after it, also by an exception, the model is the base, bit for bit.

    The first time, the model is compared with the base's values that the pack keeps, and these and the new ones go to its
    device, where they stay as long as the pack does (twice its size). From then on only what is exchanged is written,
    unless weights have changed or moved meanwhile: torch counts changes (but for those through `.data`).

    Args:
        model: The base as loaded, in any dtype and on any device, not partitioned.
        pack: Of this base. Its whole weights are not fingerprinted here: `Pack.apply` insists on that.

    Raises:
        UserError: The model holds a pack already, or is not the base that the pack was made on. Nothing is changed then.
    """
    swaps = _SWAPS.setdefault(model, _Swaps())
    if swaps.held is not None:
        raise UserError(
            f"the model holds a language pack already ({swaps.held.title}, in a `with` block that is still open), so it cannot "
            f"take {pack.title}: leave that block first, or put both into one pack with `lape-ds pack compose`"
        )
    places = swaps.places(model, pack)
    swaps.held = pack
    try:
        _write(places, "new")
        yield
    finally:
        _write(places, "base")
        swaps.leave(places)


class _Swaps:
    """What `language` knows of one model.

    Attributes:
        held: The pack of an open block.
    """

    def __init__(self) -> None:
        self.held: Pack | None = None
        self._known: WeakKeyDictionary[Pack, list[_Place]] = WeakKeyDictionary()  # compared with the model
        self._left: dict[str, tuple[int, int]] = {}  # by weight: where it lay and its version, as we left it

    def places(self, model: nn.Module, pack: Pack) -> list[_Place]:
        """Where the pack goes; compared with its base, if that was not done or weights have changed since."""
        known = self._known.get(pack)
        if known is not None and all(
            model.get_parameter(place.name) is place.weight and self._left[place.name] == place.state()
            for place in known
        ):
            return known
        places = _places(model, pack)
        if any(self._left.get(place.name, place.state()) != place.state() for place in places):
            self._known.clear()  # what has changed may be other packs' neurons as well
        _check(places, pack, "base")
        self._known[pack] = places
        return places

    def leave(self, places: Sequence[_Place]) -> None:
        """Ends a block whose pack is out again."""
        self._left |= {place.name: place.state() for place in places}
        self.held = None


_SWAPS: WeakKeyDictionary[nn.Module, _Swaps] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Place:
    """Where a pack's vectors of one projection go in a model.

    Attributes:
        name: Of the weight.
        entries: Of the neurons.
        new: [n, D], ready to be written.
        base: Likewise.
    """

    name: str
    entries: NeuronEntries
    new: Tensor
    base: Tensor

    @property
    def weight(self) -> nn.Parameter:
        """The weight in which they lie."""
        return self.entries.weight

    def state(self) -> tuple[int, int]:
        """Another one as soon as the weight has moved or changed."""
        return self.weight.data_ptr(), self.weight._version


def _places(model: nn.Module, pack: Pack) -> list[_Place]:
    layers = ffn_layers(model)
    check_neurons(layers, pack.neurons)
    found = []
    for layer in layers:
        index = pack.index(layer.index)
        for part in layer.slices if len(index) else ():
            entries = NeuronEntries.of(layer, part, index)
            new, base = (side[layer.index][part.projection] for side in (pack.new, pack.base))
            found.append(_Place(part.parameter_name, entries, entries.ready(new), entries.ready(base)))
    return found


def _other_than(places: Sequence[_Place], side: _Side) -> _Place | None:
    """The first place whose values are not those of a side of the pack."""
    return next(
        (
            place
            for place in places
            if not torch.equal(bits(place.entries.read()), bits(getattr(place, side)))
        ),
        None,
    )


def _check(places: Sequence[_Place], pack: Pack, side: _Side) -> None:
    """Refuses a model that does not hold a side of the pack."""
    place = _other_than(places, side)
    if place is not None:
        raise UserError(
            f"{place.name} does not hold the {'base' if side == 'base' else 'pack'}'s values: the model was "
            f"changed since it was loaded, {'holds a pack already' if side == 'base' else 'does not hold this pack'}, or "
            f"its weights were rounded to another dtype than that of the training ({pack.dtype})"
        )


@torch.no_grad()
def _write(places: Sequence[_Place], side: _Side) -> None:
    for place in places:
        place.entries.write(getattr(place, side))


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of all that a file holds: whose neurons they are, and of which base, is as much a part of it as the numbers."""
    total = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        values = tensors[name].contiguous()
        total.update(f"{name} {values.dtype} {list(values.shape)}\n".encode())
        total.update(cast(Any, values.reshape(-1).view(torch.uint8).numpy()).data)
    return total.hexdigest()
