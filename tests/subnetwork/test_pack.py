"""Language packs on every architecture: exact there and back, and refused where they do not belong."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from lape_ds.errors import UserError
from lape_ds.subnetwork.entries import entry_masks
from lape_ds.subnetwork.pack import Pack, language
from lape_ds.subnetwork.vectors import neuron_vectors
from tests.tiny_models import MIXTURES, MODEL_TYPES, tiny_model

BASE = "b" * 64
NEURONS = [(0, 0), (0, 22), (2, 5), (2, 7), (2, 13)]  # none in layer 1
EXPERT_NEURONS = [(0, 0), (0, 22), (0, 23), (0, 70), (2, 91)]


def trained(model: PreTrainedModel, neurons: torch.Tensor, *, seed: int = 7) -> PreTrainedModel:
    """A copy in which every entry of the mask is another number, and nothing else."""
    other = copy.deepcopy(model)
    named = dict(other.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, mask in entry_masks(other, neurons).items():
            noise = 1 + torch.rand(named[name].shape, generator=generator).to(model.dtype)
            named[name].add_(mask.keep_only(noise))
    return other


def pack_of(
    base: PreTrainedModel, other: PreTrainedModel, neurons: torch.Tensor, language: str = "mlt_Latn"
) -> Pack:
    return Pack(
        neurons=neurons,
        new=neuron_vectors(other, neurons),
        base=neuron_vectors(base, neurons),
        base_fingerprint=BASE,
        base_model="tiny",
        languages=(language,),
        origin={"step": 3},
    )


def neurons_of(model_type: str) -> torch.Tensor:
    return torch.tensor(EXPERT_NEURONS if model_type in MIXTURES else NEURONS, dtype=torch.int32)


def same_bits(model: PreTrainedModel, other: PreTrainedModel) -> bool:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first.view(torch.uint8), second.view(torch.uint8)) for first, second in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_there_and_back(model_type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    neurons = neurons_of(model_type)
    base, model = (tiny_model(model_type, dtype=dtype) for _ in range(2))
    other = trained(base, neurons)
    assert not same_bits(base, other)
    pack_of(base, other, neurons).save(tmp_path / "pack.safetensors")
    pack = Pack.load(tmp_path / "pack.safetensors")
    assert pack.num_entries == sum(mask.num_entries for mask in entry_masks(base, neurons).values())
    assert torch.equal(pack.neurons, neurons)
    assert (pack.languages, pack.origin, pack.base_model) == (("mlt_Latn",), {"step": 3}, "tiny")
    for _ in range(2):
        pack.apply(model, base_fingerprint=BASE)
        assert same_bits(model, other)
        pack.revert(model)
        assert same_bits(model, base)


def test_signs_of_zero_and_nan_survive(tmp_path: Path) -> None:
    neurons = neurons_of("llama")
    base, other = tiny_model("llama"), tiny_model("llama")
    for model, value in ((base, -0.0), (other, float("nan"))):
        with torch.no_grad():
            dict(model.named_parameters())["model.layers.0.mlp.down_proj.weight"][:, 22] = value
    pack_of(base, other, neurons).save(tmp_path / "pack.safetensors")
    pack = Pack.load(tmp_path / "pack.safetensors")
    model = copy.deepcopy(base)
    pack.apply(model, base_fingerprint=BASE)
    assert same_bits(model, other)
    pack.revert(model)
    assert same_bits(model, base)


@pytest.mark.parametrize(
    ("key", "value"),
    [("base_fingerprint", "c" * 64), ("languages", '["kat_Geor"]'), ("base_model", None), ("extra", "1")],
)
def test_altered_metadata_are_found(
    key: str, value: str | None, fitting: tuple[Pack, PreTrainedModel], tmp_path: Path
) -> None:
    fitting[0].save(tmp_path / "pack.safetensors")
    with safe_open(tmp_path / "pack.safetensors", framework="pt") as file:
        metadata = file.metadata()
    metadata.pop(key, None)
    if value is not None:
        metadata[key] = value
    save_file(load_file(tmp_path / "pack.safetensors"), tmp_path / "altered.safetensors", metadata=metadata)
    with pytest.raises(
        UserError, match=r"altered\.safetensors is damaged: its content is not what was written"
    ):
        Pack.load(tmp_path / "altered.safetensors")


def test_a_pack_without_neurons_is_refused(fitting: tuple[Pack, PreTrainedModel], tmp_path: Path) -> None:
    replace(fitting[0], new={}, base={}).save(tmp_path / "pack.safetensors")
    with pytest.raises(UserError, match=r"is no whole language pack: it lacks 'layers\.<layer>\.neurons'"):
        Pack.load(tmp_path / "pack.safetensors")


@pytest.fixture
def fitting() -> tuple[Pack, PreTrainedModel]:
    neurons = neurons_of("llama")
    base = tiny_model("llama")
    return pack_of(base, trained(base, neurons), neurons), base


def apply(pack: Pack, model: PreTrainedModel) -> None:
    pack.apply(model, base_fingerprint=BASE)


def apply_to_other_weights(pack: Pack, model: PreTrainedModel) -> None:
    pack.apply(model, base_fingerprint="c" * 64)


def apply_twice(pack: Pack, model: PreTrainedModel) -> None:
    apply(pack, model)
    apply(pack, model)


def apply_to_a_changed_base(pack: Pack, model: PreTrainedModel) -> None:
    """One entry of the last weight that is looked at: nothing may have been written before it is."""
    with torch.no_grad():
        dict(model.named_parameters())["model.layers.2.mlp.down_proj.weight"][3, 13] += 1e-6
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        apply(pack, model)
    finally:
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def apply_to_a_rounded_base(pack: Pack, model: PreTrainedModel) -> None:
    apply(pack, model.to(torch.bfloat16).to(torch.float32))  # pyright: ignore[reportArgumentType]


def apply_to_a_smaller_model(pack: Pack, model: PreTrainedModel) -> None:
    apply(pack, tiny_model("llama", num_hidden_layers=2))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            apply_to_other_weights,
            "is of another base model: made on tiny with weights b{16}, this model's are c{16}",
        ),
        (apply_twice, "gate_proj.weight does not hold the base's values: .*holds a pack already"),
        (Pack.revert, "does not hold the pack's values: .*does not hold this pack"),
        (apply_to_a_changed_base, "layers.2.mlp.down_proj.weight does not hold the base's values"),
        (apply_to_a_rounded_base, r"rounded to another dtype than that of the training \(float32\)"),
        (apply_to_a_smaller_model, r"neuron \(layer 2, index 5\) is not in this model"),
    ],
)
def test_what_does_not_fit_is_refused(
    act: Callable[[Pack, PreTrainedModel], None], message: str, fitting: tuple[Pack, PreTrainedModel]
) -> None:
    with pytest.raises(UserError, match=message):
        act(*fitting)


def several_packs(base: PreTrainedModel) -> dict[str, tuple[Pack, PreTrainedModel]]:
    """Packs of three languages, two of which share neurons, each with the model that was trained."""
    size = 92 if base.config.model_type in MIXTURES else 23
    picked = {
        "mlt_Latn": [(0, 0), (2, 5), (2, 7)],
        "cym_Latn": [(1, 3), (2, size - 1)],
        "kat_Geor": [(0, 0), (2, 7)],
    }
    found = {}
    for seed, (code, pairs) in enumerate(picked.items()):
        neurons = torch.tensor(pairs, dtype=torch.int32)
        other = trained(base, neurons, seed=seed)
        found[code] = (pack_of(base, other, neurons, code), other)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model_type", ["llama", "phi3", "opt", "mixtral"])
def test_a_thousand_random_swaps(model_type: str, dtype: torch.dtype) -> None:
    base, model = (tiny_model(model_type, dtype=dtype) for _ in range(2))
    packs = several_packs(base)
    choose = random.Random(0)
    for turn in range(1000):
        code = choose.choice(list(packs))
        pack, other = packs[code]
        with language(model, pack):
            if turn % 50 == 0:
                assert same_bits(model, other)
        if turn % 50 == 0:
            assert same_bits(model, base)
    assert same_bits(model, base)


class _Interrupted(Exception):
    pass


@pytest.mark.parametrize("error", [_Interrupted, KeyboardInterrupt])
def test_an_exception_takes_the_pack_out(
    fitting: tuple[Pack, PreTrainedModel], error: type[BaseException]
) -> None:
    pack, model = fitting
    base = copy.deepcopy(model)

    def interrupted() -> None:
        with language(model, pack):
            assert not same_bits(model, base)
            raise error

    with pytest.raises(error):
        interrupted()
    assert same_bits(model, base)
    with language(model, pack):
        assert not same_bits(model, base)


def test_training_inside_the_block_is_taken_out_with_the_pack(fitting: tuple[Pack, PreTrainedModel]) -> None:
    pack, model = fitting
    base = copy.deepcopy(model)
    with language(model, pack), torch.no_grad():
        dict(model.named_parameters())["model.layers.2.mlp.down_proj.weight"][:, 13] *= 2
    assert same_bits(model, base)


def test_one_pack_at_a_time() -> None:
    model = tiny_model("llama")
    base = copy.deepcopy(model)
    packs = several_packs(model)
    (first, other), (second, _) = packs["mlt_Latn"], packs["cym_Latn"]
    with language(model, first):
        with (
            pytest.raises(
                UserError, match=r"holds a language pack already \(mlt_Latn.*cannot take cym_Latn: leave"
            ),
            language(model, second),
        ):
            pytest.fail("two packs in one model")
        assert same_bits(model, other)  # the refusal has left the first one in
        with language(base, second):  # another model is free
            pass
    assert same_bits(model, base)
    with language(model, second):
        pass


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_model_that_is_not_the_base_is_refused(
    fitting: tuple[Pack, PreTrainedModel], *, seen_before: bool
) -> None:
    """Also one that was the base the last time."""
    pack, model = fitting
    if seen_before:
        with language(model, pack):
            pass
    with torch.no_grad():
        dict(model.named_parameters())["model.layers.2.mlp.down_proj.weight"][3, 13] += 1e-6
    changed = copy.deepcopy(model)
    with (
        pytest.raises(UserError, match=r"down_proj.weight does not hold the base's values"),
        language(model, pack),
    ):
        pytest.fail("a pack in another model")
    assert same_bits(model, changed)


def test_a_change_that_another_pack_does_not_see() -> None:
    """Two packs have neurons in one weight, and a change spares those of the one that is used next."""
    model = tiny_model("llama")
    packs = several_packs(model)
    for code in ("mlt_Latn", "cym_Latn"):
        with language(model, packs[code][0]):
            pass
    with torch.no_grad():
        dict(model.named_parameters())["model.layers.2.mlp.up_proj.weight"][5] += 1  # mlt_Latn's
    with language(model, packs["cym_Latn"][0]):
        pass
    with (
        pytest.raises(UserError, match=r"up_proj.weight does not hold"),
        language(model, packs["mlt_Latn"][0]),
    ):
        pytest.fail("a pack in another model")


def test_a_model_that_moved_between_swaps() -> None:
    """Cast, or given other weights: each time as if the pack had met this model first."""
    model, base = tiny_model("llama"), tiny_model("llama")
    pack, other = several_packs(base)["mlt_Latn"]
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)  # pyright: ignore[reportArgumentType]
        expected = copy.deepcopy(other).to(dtype)  # pyright: ignore[reportArgumentType]
        with language(model, pack):
            assert same_bits(model, expected)
        assert same_bits(model, copy.deepcopy(base).to(dtype))  # pyright: ignore[reportArgumentType]
    model = tiny_model("llama")
    with language(model, pack):
        pass
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    with language(model, pack):
        assert same_bits(model, other)
    assert same_bits(model, base)


def test_nothing_holds_a_model_that_is_done_with(fitting: tuple[Pack, PreTrainedModel]) -> None:
    pack, _ = fitting
    model = tiny_model("llama")
    with language(model, pack):
        pass
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_damaged_files_are_refused(fitting: tuple[Pack, PreTrainedModel], tmp_path: Path) -> None:
    path = tmp_path / "pack.safetensors"
    with pytest.raises(UserError, match=r"no such file.*`lape-ds pack make RUN` writes"):
        Pack.load(path)
    fitting[0].save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(UserError, match="is damaged: its content is not what was written"):
        Pack.load(path)
    path.write_bytes(whole[:-5])
    with pytest.raises(UserError, match="is not a readable safetensors file"):
        Pack.load(path)
    path.write_bytes(whole.replace(b"language pack", b"neurons of all"[:13]))
    with pytest.raises(UserError, match="is not a file of language pack"):
        Pack.load(path)
