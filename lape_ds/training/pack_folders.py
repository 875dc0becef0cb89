"""Between language packs and model folders: the trained model from base and pack, the base back from it, a pack from two folders.

After training, beside export.py. Whole models are held on the CPU, weight files memory-mapped.

Shape legend: n neurons of one layer, D hidden size, E experts, I intermediate size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lape_ds.errors import UserError
from lape_ds.model.ffn import FFNLayer, ffn_layers, full_shape
from lape_ds.model.loading import fingerprint, load_model
from lape_ds.model.weights import checkpoint_files, tensors_of
from lape_ds.subnetwork.entries import bits
from lape_ds.subnetwork.pack import Pack
from lape_ds.subnetwork.vectors import neuron_vectors
from lape_ds.training.export import count_changes, write_model
from lape_ds.writing import whole_folder, write_json

_MARKER = "lape_ds_pack.json"  # by it a later command knows a folder that it may replace
_DTYPES = {"float32", "bfloat16", "float16"}


@dataclass(frozen=True)
class Written:
    """A model folder that was written.

    Attributes:
        changed: Weights that differ from the folder that was read, all of them of the pack's neurons.
        is_base: Whether its weights are those of the pack's base, by their fingerprint.
    """

    changed: int
    is_base: bool


def apply_to_folder(pack: Pack, base: Path, target: Path) -> Written:
    """Writes the trained model as a plain Hugging Face folder: weights as `lape-ds export` writes them, byte for byte.

    Args:
        pack: Of that base.
        base: Its folder, left as it is.
        target: Made; an earlier one of this kind is replaced, anything else is refused.

    Raises:
        UserError: Another base, one that holds the pack already, or no model there.
    """
    found = fingerprint(base)
    model = _load(base, pack.dtype)
    if found != pack.base_fingerprint and pack.is_in(model):
        raise UserError(
            f"{base} holds {pack.title} already: there is nothing to apply; `lape-ds pack revert` takes it out again"
        )
    pack.apply(model, base_fingerprint=found)
    return _write(pack, model, base, target, "applied to")


def revert_in_folder(pack: Pack, folder: Path, target: Path) -> Written:
    """Writes the base model back out of a folder that holds the pack.

    Args:
        pack: That was applied.
        folder: Of the model with the pack, left as it is.
        target: As for `apply_to_folder`.

    Raises:
        UserError: The model there does not hold the pack.
    """
    model = _load(folder, pack.dtype)
    pack.revert(model)
    return _write(pack, model, folder, target, "taken out of")


def _write(pack: Pack, model: PreTrainedModel, source: Path, target: Path, act: str) -> Written:
    with whole_folder(target, marker_files=(_MARKER,)) as temporary:
        write_model(model, temporary, tokenizer_folder=source)
        changed = count_changes(temporary, _load(source, pack.dtype), pack.neurons)
        is_base = fingerprint(temporary) == pack.base_fingerprint
        write_json(temporary / _MARKER, {act: str(source), "languages": list(pack.languages)})
    return Written(changed, is_base)


def difference(base: Path, trained: Path, *, base_model: str, languages: Sequence[str] = ()) -> Pack:
    """A pack of what differs between two folders of one model: the neurons in which any weight has other bits.

    Args:
        base: Folder of the model that was trained from.
        trained: Folder of what became of it; its dtype is the pack's.
        base_model: What the pack calls the base, path or hub id.
        languages: Canonical codes of what was trained, where it is known.

    Raises:
        UserError: Not two versions of one model, no difference, one outside the feed-forward neurons, or of most of them: other
            training than of neurons.
    """
    dtype = _stored_dtype(trained)
    before, after = _load(base, dtype), _load(trained, dtype)
    _check_same_shapes(before, after, base, trained)
    layers = list(zip(ffn_layers(before), ffn_layers(after), strict=True))
    inside = {part.parameter_name for layer, _ in layers for part in layer.slices}
    _check_outside(before, after, inside, trained)
    found = [_changed_neurons(first, second) for first, second in layers]
    neurons = torch.cat(
        [
            torch.stack([torch.full_like(index, layer.index), index], dim=1)
            for (layer, _), index in zip(layers, found, strict=True)
        ]
    ).int()
    num_all = sum(layer.num_neurons for layer, _ in layers)
    if len(neurons) == 0:
        raise UserError(f"{trained} holds the same weights as {base}: there is nothing to make a pack of")
    if 2 * len(neurons) > num_all:
        raise UserError(
            f"{len(neurons):,} of the {num_all:,} neurons differ between {base} and {trained}, as after full, FFN-only or LoRA "
            "training: a pack keeps new and old values and would be larger than all feed-forward weights; keep the model folder "
            "itself, or LoRA's adapter"
        )
    return Pack(
        neurons=neurons,
        new=neuron_vectors(after, neurons),
        base=neuron_vectors(before, neurons),
        base_fingerprint=fingerprint(base),
        base_model=base_model,
        languages=tuple(languages),
        origin={"difference_of": [base.resolve().name, trained.resolve().name]},
    )


def _load(folder: Path, dtype: str) -> PreTrainedModel:
    return load_model(folder, dtype=dtype, attn_implementation="eager")


def _stored_dtype(folder: Path) -> str:
    stored = {
        str(tensor.dtype).removeprefix("torch.")
        for path in checkpoint_files(folder)
        for _, tensor in tensors_of(path)
        if tensor.is_floating_point()
    }
    if len(stored) != 1 or not stored <= _DTYPES:
        raise UserError(
            f"{folder} holds weights of {', '.join(sorted(stored)) or 'no known dtype'}: a pack is made of weights of one dtype, "
            f"{', '.join(sorted(_DTYPES))}; save the model in one"
        )
    return stored.pop()


def _check_same_shapes(before: PreTrainedModel, after: PreTrainedModel, base: Path, trained: Path) -> None:
    shapes = [
        {name: weight.shape for name, weight in model.state_dict().items()} for model in (before, after)
    ]
    if before.config.model_type == after.config.model_type and shapes[0] == shapes[1]:
        return
    unlike = sorted(
        name for name in shapes[0].keys() | shapes[1].keys() if shapes[0].get(name) != shapes[1].get(name)
    )
    raise UserError(
        f"{base} ({before.config.model_type}) and {trained} ({after.config.model_type}) are not two versions of one model"
        + (f": {unlike[0]} is of another shape, or in one only" if unlike else "")
        + "; give the folder that was trained from"
    )


def _check_outside(before: PreTrainedModel, after: PreTrainedModel, inside: set[str], trained: Path) -> None:
    others = after.state_dict()
    differ = [
        name
        for name, weight in before.state_dict().items()
        if name not in inside and not torch.equal(bits(weight), bits(others[name]))
    ]
    if differ:
        raise UserError(
            f"{trained} differs from its base outside the feed-forward neurons, in {len(differ):,} weights, e.g. {differ[0]}, as "
            "after full, LoRA or (IA)³ training: a language pack holds single neurons; keep the model folder, or the adapter"
        )


def _changed_neurons(before: FFNLayer, after: FFNLayer) -> Tensor:
    """Neurons of a layer in which any bit differs, int64 [n], sorted."""
    changed = torch.zeros(before.num_experts, before.neurons_per_expert, dtype=torch.bool)
    for one, other in zip(before.slices, after.slices, strict=True):
        shape = (before.num_experts, *full_shape(one.parameter)[-2:])
        differs = (bits(one.parameter) != bits(other.parameter)).view(shape).any(2 if one.axis == 0 else 1)
        changed |= differs[:, one.offset : one.offset + before.neurons_per_expert]
    return changed.flatten().nonzero()[:, 0]
