"""The published format of neuron sets: import from and export to `list[language][layer]` of index tensors.

Beside the neuron set: both public projects (arXiv 2402.16438, 2510.13580) ship pickled lists of LongTensors
without any metadata, so that the order of the languages and the model must be told.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.writing import whole_file

# What torch's unpickler lets out where a file is damaged, or of another kind: it checks no byte before it believes it.
_UNREADABLE = (
    *(pickle.UnpicklingError, struct.error, EOFError, RuntimeError, AssertionError),
    *(ValueError, LookupError, AttributeError, TypeError, OverflowError),
)
_INDEX_TYPES = (torch.int64, torch.int32, torch.int16, torch.uint8)


def import_published(
    path: Path,
    languages: Sequence[str],
    *,
    neurons_per_layer: int,
    model_id: str,
    model_fingerprint: str = "",
) -> NeuronSet:
    """Reads a published set. Nothing in the file is executed.

    Args:
        path: A file that `torch.save` wrote: a list per language of a list per layer of integer tensors
            `[n]`.
        languages: Codes in the file's order.
        neurons_per_layer: `intermediate_size` of the model, which the file does not tell.
        model_id: Recorded.
        model_fingerprint: Recorded; "" where the very weights are not at hand.

    Raises:
        UserError: Not such a file, another number of languages, or indices outside the model.
    """
    nested = _read_nested_list(path, neurons_per_layer)
    if len(nested) != len(languages):
        raise UserError(
            f"{path} holds {len(nested)} languages, {len(languages)} were named; name each, in the file's "
            "order "
            "(the reference drops trailing languages without neurons: leave those out)"
        )
    if len(set(languages)) != len(languages):
        raise UserError(
            f"{path}: a language is named twice ({', '.join(languages)}); name each once, in the file's order"
        )
    num_layers = {len(layers) for layers in nested}
    if len(num_layers) != 1:
        raise UserError(
            f"{path}: its languages have different numbers of layers ({sorted(num_layers)}); not a neuron set"
        )
    try:
        return NeuronSet(
            indices={code: _flatten(layers) for code, layers in zip(languages, nested, strict=True)},
            num_layers=num_layers.pop(),
            neurons_per_layer=neurons_per_layer,
            model_id=model_id,
            model_fingerprint=model_fingerprint,
            method="import",
            knobs={"file": path.name},
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def export_published(neuron_set: NeuronSet, path: Path) -> None:
    """Writes a set as `list[language][layer]` of int64 tensors, in the order of `neuron_set.languages`.

    Languages and layers without neurons keep their place as empty tensors. Written whole or not at all.
    """
    nested = [neuron_set.per_layer(code) for code in neuron_set.languages]
    with whole_file(path) as temporary:
        torch.save([[layer.clone() for layer in layers] for layers in nested], temporary)


def _read_nested_list(path: Path, neurons_per_layer: int) -> list[list[Tensor]]:
    if not path.is_file():
        raise UserError(f"no such file: {path} (expected a published neuron set, as torch.save writes it)")
    try:
        nested = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise UserError(
            f"{path} is refused: not a file of plain tensors as torch.save writes it, or it holds code, "
            "which is never run"
        ) from error
    if not (
        isinstance(nested, list) and nested and all(isinstance(layers, list) and layers for layers in nested)
    ):
        raise UserError(
            f"{path} is not a list (languages) of lists (layers) of tensors; not a published neuron set"
        )
    for layers in nested:
        for neurons in layers:
            _check_layer(path, neurons, neurons_per_layer)
    return nested


def _check_layer(path: Path, neurons: object, neurons_per_layer: int) -> None:
    if not (
        isinstance(neurons, Tensor)
        and neurons.layout == torch.strided
        and neurons.device.type == "cpu"  # not of the meta device, which has no values
        and neurons.dim() == 1
        and (neurons.dtype in _INDEX_TYPES or not len(neurons))  # `torch.tensor([])` is float32
    ):
        raise UserError(f"{path}: a layer is not a 1-dimensional integer tensor; not a published neuron set")
    if len(neurons) > neurons_per_layer:  # a few bytes can claim to be terabytes, by a stride of 0
        raise UserError(
            f"{path}: a layer has {len(neurons):,} neurons of one language, outside the model's {neurons_per_layer:,}; "
            "this set was made for another model"
        )


def _flatten(layers: list[Tensor]) -> Tensor:
    """Per-layer indices to sorted int32 `[n, 2]`."""
    rows = [
        torch.stack([torch.full((len(indices),), layer), indices.long().sort().values], 1)
        for layer, indices in enumerate(layers)
    ]
    return torch.cat(rows).int()
