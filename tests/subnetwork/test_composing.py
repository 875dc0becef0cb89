"""Packs of several languages as one: disjoint ones exactly, shared neurons by a rule that is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from lape_ds.errors import UserError
from lape_ds.subnetwork.composing import compose
from lape_ds.subnetwork.pack import Pack, language
from tests.subnetwork.test_pack import BASE, pack_of, same_bits, trained
from tests.tiny_models import MIXTURES, tiny_model

MODELS = ("llama", "phi3", "opt", "mixtral")
MALTESE = [(0, 0), (2, 5), (2, 7)]
WELSH = [(0, 22), (1, 3), (2, 6)]  # disjoint
GEORGIAN = [(0, 0), (2, 6), (2, 7), (2, 20)]  # shares two neurons with Maltese, one with Welsh
Trained = tuple[Pack, PreTrainedModel]


def made(base: PreTrainedModel, pairs: list[tuple[int, int]], code: str, seed: int) -> Trained:
    neurons = torch.tensor(pairs, dtype=torch.int32)
    other = trained(base, neurons, seed=seed)
    return pack_of(base, other, neurons, code), other


def by_hand(
    base: PreTrainedModel, parts: list[tuple[list[tuple[int, int]], PreTrainedModel]]
) -> PreTrainedModel:
    """A dense copy of a Llama, neuron by neuron: each from the last part that has it."""
    model = tiny_model("llama", dtype=base.dtype)
    with torch.no_grad():
        for pairs, source in parts:
            for layer, index in pairs:
                mine, theirs = model.model.layers[layer].mlp, source.model.layers[layer].mlp
                mine.gate_proj.weight[index] = theirs.gate_proj.weight[index]
                mine.up_proj.weight[index] = theirs.up_proj.weight[index]
                mine.down_proj.weight[:, index] = theirs.down_proj.weight[:, index]
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model_type", MODELS)
def test_disjoint_packs_give_both_trainings(model_type: str, dtype: torch.dtype, tmp_path: Path) -> None:
    base = tiny_model(model_type, dtype=dtype)
    (maltese, with_maltese), (welsh, with_welsh) = (
        made(base, MALTESE, "mlt_Latn", 1),
        made(base, WELSH, "cym_Latn", 2),
    )
    found = compose([maltese, welsh])
    found.pack.save(tmp_path / "both.safetensors")
    both = Pack.load(tmp_path / "both.safetensors")
    assert (found.num_shared, found.shared_by_pair) == (0, {})
    assert both.neurons.tolist() == sorted(map(list, MALTESE + WELSH))
    assert both.languages == ("mlt_Latn", "cym_Latn")
    model = tiny_model(model_type, dtype=dtype)
    with language(model, both):
        # What one training changed, the other left as it was: so whatever differs from the base is the one's or the other's.
        for name, weight in model.state_dict().items():
            of_base, one, other = (m.state_dict()[name] for m in (base, with_maltese, with_welsh))
            assert torch.equal(weight, torch.where(one != of_base, one, other)), name
    assert same_bits(model, base)
    assert model_type in MIXTURES or not same_bits(with_maltese, with_welsh)


def test_shared_neurons_are_refused_without_a_rule() -> None:
    base = tiny_model("llama")
    packs = [
        made(base, pairs, code, seed)[0]
        for seed, (pairs, code) in enumerate(
            [(MALTESE, "mlt_Latn"), (WELSH, "cym_Latn"), (GEORGIAN, "kat_Geor")]
        )
    ]
    with pytest.raises(
        UserError,
        match=r"3 of 7 neurons are in several packs \(mlt_Latn and kat_Geor 2; cym_Latn and kat_Geor 1\).*--shared first",
    ):
        compose(packs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_pack_wins(dtype: torch.dtype) -> None:
    base = tiny_model("llama", dtype=dtype)
    (maltese, with_maltese), (georgian, with_georgian) = (
        made(base, MALTESE, "mlt_Latn", 1),
        made(base, GEORGIAN, "kat_Geor", 2),
    )
    model = tiny_model("llama", dtype=dtype)
    for packs, parts in (
        ([maltese, georgian], [(GEORGIAN, with_georgian), (MALTESE, with_maltese)]),
        ([georgian, maltese], [(MALTESE, with_maltese), (GEORGIAN, with_georgian)]),
    ):
        found = compose(packs, shared="first")
        assert found.num_shared == 2
        assert "2 neurons are in several packs" in found.report
        assert "by the rule first" in found.report
        with language(model, found.pack):
            assert same_bits(model, by_hand(base, parts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_mean_of_changes(dtype: torch.dtype) -> None:
    base = tiny_model("llama", dtype=dtype)
    trainings = [
        made(base, pairs, code, seed)
        for seed, (pairs, code) in enumerate(
            [(MALTESE, "mlt_Latn"), (WELSH, "cym_Latn"), (GEORGIAN, "kat_Geor")]
        )
    ]
    found = compose([pack for pack, _ in trainings], shared="mean-of-changes")
    # Naively: each weight that several have changed is the base's plus the mean of their changes.
    expected = {}
    for name, weight in base.state_dict().items():
        others = torch.stack([model.state_dict()[name] for _, model in trainings])
        changes = others.double() - weight.double()
        times = (changes != 0).sum(0)
        mean = (weight.double() + changes.sum(0) / times.clamp(min=1)).to(dtype)
        changed_once = others.gather(0, (changes != 0).int().argmax(0, keepdim=True))[0]
        expected[name] = torch.where(times > 1, mean, torch.where(times == 1, changed_once, weight))
    model = tiny_model("llama", dtype=dtype)
    with language(model, found.pack):
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, expected[name]), name
    assert same_bits(model, base)


def test_a_pack_with_itself_is_itself() -> None:
    base = tiny_model("llama", dtype=torch.bfloat16)
    pack, other = made(base, MALTESE, "mlt_Latn", 1)
    for rule in ("first", "mean-of-changes"):
        with language(base, compose([pack, pack], shared=rule).pack):
            assert same_bits(base, other)


def test_what_cannot_be_composed() -> None:
    base = tiny_model("llama")
    pack, _ = made(base, MALTESE, "mlt_Latn", 1)
    rounded = tiny_model("llama", dtype=torch.bfloat16)
    of_bfloat16, _ = made(rounded, WELSH, "cym_Latn", 1)
    other = Pack(**{**vars(pack), "base_fingerprint": "c" * 64, "base_model": "another"})
    with pytest.raises(
        UserError, match=f"of two base models: mlt_Latn was made on tiny with weights {BASE[:16]}.*another"
    ):
        compose([pack, other])
    with pytest.raises(
        UserError, match="of mlt_Latn is of a training in float32, that of cym_Latn in bfloat16"
    ):
        compose([pack, of_bfloat16])
    with pytest.raises(UserError, match="1 language pack given: name two or more"):
        compose([pack])
