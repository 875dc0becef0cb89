"""Neuron sets that others have published: which files are known, and what an import checks.

Above the format (formats.py): a published file tells neither its languages nor its model, so that both come from the user, from
the model's config, or, for the nine files that are known by their content, from the table here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.model.loading import fingerprint, load_skeleton, resolve_model
from lape_ds.model.shape import ModelShape, model_shape
from lape_ds.neurons.formats import import_published
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.writing import file_sha256


@dataclass(frozen=True)
class PublishedFile:
    """A known file: what it does not say of itself."""

    name: str
    model_id: str
    neurons_per_layer: int
    languages: tuple[str, ...]


# Source: identification/identify.py of the code of arXiv 2510.13580; README.md of that of arXiv 2402.16438, five of whose files
# hold no Japanese: its ppl.py leaves it out for all but Llama, and the 70B's overlaps (French–Spanish, Vietnamese–Indonesian)
# stand where the 7B's do.
_UNDERREPRESENTED = tuple("mt af is cy mk lv lt sl sk et ka ne".split())
_SIX = tuple("en zh fr es vi id".split())
KNOWN = {
    "eb69502938bbcc22a5365748dcc44145b7b438d35d37e6d4b58532971c3baae8": PublishedFile(
        "llama-3.1-5", "meta-llama/Llama-3.1-8B", 14336, _UNDERREPRESENTED
    ),
    "1810e7f78352c643db1f946cc977a3673cab8ebb1297c59954f2f6cd45a8ca43": PublishedFile(
        "nemo-5", "mistralai/Mistral-Nemo-Base-2407", 14336, _UNDERREPRESENTED
    ),
    "6653cb977fb85a5e61b21dd8f08480e7d69a18bdabdd6e374a56203b5c018c0d": PublishedFile(
        "LLaMA-2-7B.neuron.pth", "meta-llama/Llama-2-7b-hf", 11008, (*_SIX, "ja")
    ),
    "695ce7d2da665ac05eeb8267a50765edcb315cb961afd93a318c48c0ebccb8a0": PublishedFile(
        "LLaMA-2-13B.neuron.pth", "meta-llama/Llama-2-13b-hf", 13824, (*_SIX, "ja")
    ),
    "a5384631cffaa335e5ea78b3c7d1c747af5e87f0b74d25a491a8ebac5cf94dc8": PublishedFile(
        "LLaMA-2-70B.neuron.pth", "meta-llama/Llama-2-70b-hf", 28672, _SIX
    ),
    "c2d74f87588e650225d3a2571b3fd3db1895ef5778b31e2102ba4a42f0dee44b": PublishedFile(
        "BLOOM-7B.neuron.pth", "bigscience/bloom-7b1", 16384, _SIX
    ),
    "c4ea974dc94e9d72014e6b9bd29a632973e5c66908daf7023e215efb9d1277b1": PublishedFile(
        "OPT-6.7B.neuron.pth", "facebook/opt-6.7b", 16384, _SIX
    ),
    "6ff1c4e00294319ff0788071b587f36dea8816f870bbd0923be8b5d90055a39b": PublishedFile(
        "Mistral-7B.neuron.pth", "mistralai/Mistral-7B-v0.1", 14336, _SIX
    ),
    "e8a7d0ca8cf032d748b433c26d902d9580cb941b455c0a7644251f5267c6457e": PublishedFile(
        "Phi-2-2.7B.neuron.pth", "microsoft/phi-2", 10240, _SIX
    ),
}


def import_file(
    path: Path,
    *,
    languages: Sequence[str] = (),
    model: str | None = None,
    neurons_per_layer: int | None = None,
    with_fingerprint: bool = True,
) -> NeuronSet:
    """Imports a published file.

    A known file without further arguments needs no model at hand. With a model its config is read, and the file must fit it;
    only `neurons_per_layer` together with `with_fingerprint=False` does without (and without a network).

    Args:
        path: The file.
        languages: Under any name, in the file's order; empty: as the table has it.
        model: Folder or hub id; None: as the table has it.
        neurons_per_layer: `intermediate_size` (x experts); None: from the model's config, or the table.
        with_fingerprint: Record the fingerprint of `model`'s weights, so that the set is refused on others.

    Raises:
        UserError: An unknown file with something missing, or a file that is none, or does not fit.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path} (expected a published neuron set, as torch.save writes it)")
    unknown = PublishedFile(path.name, "", 0, ())
    known = KNOWN.get(file_sha256(path), unknown)
    codes = [find_language(text).code for text in languages or known.languages]
    model_id = model or known.model_id
    if not codes or not model_id:
        missing = "its model: --model" if codes else "its languages in the file's order: --languages mt,af,…"
        raise UserError(
            f"{path}: name {missing} (only these files are known by their content: "
            f"{', '.join(file.name for file in KNOWN.values())})"
        )
    shape, weights = None, ""
    if model is not None and (with_fingerprint or neurons_per_layer is None):
        folder = resolve_model(model, config_only=not with_fingerprint)
        shape = model_shape(load_skeleton(folder))
        weights = fingerprint(folder) if with_fingerprint else ""
    size = neurons_per_layer or (shape.neurons_per_layer if shape else known.neurons_per_layer)
    found = import_published(
        path, codes, neurons_per_layer=size, model_id=model_id, model_fingerprint=weights
    )
    if shape is not None:
        _check_shape(path, found, shape)
    return found


def _check_shape(path: Path, found: NeuronSet, shape: ModelShape) -> None:
    ours, theirs = (found.num_layers, found.neurons_per_layer), (shape.num_layers, shape.neurons_per_layer)
    if ours != theirs:
        raise UserError(
            f"{path} is of another model: {ours[0]} layers × {ours[1]} neurons; {found.model_id} has "
            f"{theirs[0]} × {theirs[1]}: give the model that it was made for"
        )
