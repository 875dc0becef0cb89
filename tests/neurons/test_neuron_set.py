"""The neuron set: its file, its set algebra, its random control, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.neurons.artefact import read_metadata
from lape_ds.neurons.neuron_set import NeuronSet

Pairs = list[tuple[int, int]]


def as_tensor(pairs: Pairs) -> Tensor:
    return torch.tensor(pairs, dtype=torch.int32).reshape(-1, 2)


def as_pairs(neurons: Tensor) -> Pairs:
    return [(layer, index) for layer, index in neurons.tolist()]


MLT: Pairs = [(0, 1), (0, 6), (2, 0), (2, 3)]
AFR: Pairs = [(0, 6), (2, 3), (2, 4)]


def make_set(**languages: Pairs) -> NeuronSet:
    languages = languages or {"mlt_Latn": MLT, "afr_Latn": AFR, "kat_Geor": []}
    indices = {code: as_tensor(pairs) for code, pairs in languages.items()}
    return NeuronSet(indices, 3, 7, "tiny", "f" * 64, "lape", {"top_rate": 0.05})


def test_round_trip(tmp_path: Path) -> None:
    """Order of the languages and the empty one included."""
    path = tmp_path / "neurons.safetensors"
    made = make_set()
    made.save(path)
    loaded = NeuronSet.load(path)
    assert loaded.languages == ("mlt_Latn", "afr_Latn", "kat_Geor")
    assert all(torch.equal(loaded.indices[code], made.indices[code]) for code in made.languages)
    assert replace(loaded, indices={}).__dict__ == replace(made, indices={}).__dict__


def test_experts_are_kept_and_older_sets_are_dense(tmp_path: Path) -> None:
    path = tmp_path / "neurons.safetensors"
    made = replace(make_set(), neurons_per_layer=8, experts_per_layer=4)
    assert made.random_like("mlt_Latn", seed=0).experts_per_layer == 4
    made.save(path)
    assert NeuronSet.load(path).experts_per_layer == 4
    metadata = read_metadata(path, kind="neuron set", schema_version=1)
    del metadata["experts_per_layer"]
    save_file(load_file(path), path, metadata=metadata)
    assert NeuronSet.load(path).experts_per_layer == 1


def test_confidences_are_kept_and_older_sets_have_none(tmp_path: Path) -> None:
    path = tmp_path / "neurons.safetensors"
    plain = make_set()
    plain.save(path)
    assert NeuronSet.load(path).confidence is None
    confidence = {
        "mlt_Latn": torch.tensor([1.0, 0.5, 0.25, 0.98]),
        "afr_Latn": torch.ones(3),
        "kat_Geor": torch.ones(0),
    }
    made = replace(plain, confidence=confidence)
    made.save(path)
    loaded = NeuronSet.load(path)
    assert loaded.confidence is not None
    assert all(torch.equal(loaded.confidence[code], confidence[code]) for code in made.languages)
    some = loaded.only("afr_Latn", "mlt_Latn")
    assert some.languages == tuple(some.confidence or ()) == ("afr_Latn", "mlt_Latn")
    assert loaded.random_like("mlt_Latn", seed=0).confidence is None
    with pytest.raises(UserError, match=r"confidences of afr_Latn are torch.float32 \[2\]; a float32 \[3\]"):
        replace(made, confidence=confidence | {"afr_Latn": torch.ones(2)})
    with pytest.raises(UserError, match="confidences of afr_Latn are None"):
        replace(made, confidence={"mlt_Latn": torch.ones(4)})
    with pytest.raises(UserError, match=r"must lie in \[0, 1\]"):
        replace(made, confidence=confidence | {"afr_Latn": torch.full((3,), torch.nan)})


def test_per_layer() -> None:
    assert [layer.tolist() for layer in make_set().per_layer("mlt_Latn")] == [[1, 6], [], [0, 3]]
    assert [layer.tolist() for layer in make_set().per_layer("mlt_Latn", "afr_Latn")] == [
        [1, 6],
        [],
        [0, 3, 4],
    ]
    assert [layer.tolist() for layer in make_set().per_layer("kat_Geor")] == [[], [], []]
    assert make_set().per_layer("mlt_Latn")[0].dtype == torch.int64


def test_set_algebra() -> None:
    """Against Python's own sets."""
    neuron_set, mlt, afr = make_set(), set(MLT), set(AFR)
    assert as_pairs(neuron_set.union("mlt_Latn", "afr_Latn")) == sorted(mlt | afr)
    assert as_pairs(neuron_set.intersection("mlt_Latn", "afr_Latn")) == sorted(mlt & afr)
    assert as_pairs(neuron_set.intersection("mlt_Latn", "mlt_Latn")) == sorted(mlt)
    assert as_pairs(neuron_set.difference("mlt_Latn", "afr_Latn", "kat_Geor")) == sorted(mlt - afr)
    assert neuron_set.jaccard("mlt_Latn", "afr_Latn") == 2 / 5
    assert neuron_set.jaccard("mlt_Latn", "kat_Geor") == neuron_set.jaccard("kat_Geor", "kat_Geor") == 0.0


def test_random_like() -> None:
    neuron_set = make_set()
    control = neuron_set.random_like("mlt_Latn", seed=1)
    assert control.languages == ("mlt_Latn",)
    assert [len(layer) for layer in control.per_layer("mlt_Latn")] == [2, 0, 2]
    assert not set(as_pairs(control.neurons("mlt_Latn"))) & set(MLT)
    assert (control.method, control.knobs) == ("random", {"like": "lape", "seed": 1})
    assert torch.equal(
        control.neurons("mlt_Latn"), neuron_set.random_like("mlt_Latn", seed=1).neurons("mlt_Latn")
    )
    others = [
        as_pairs(neuron_set.random_like("mlt_Latn", seed=seed).neurons("mlt_Latn")) for seed in range(2, 12)
    ]
    assert any(other != as_pairs(control.neurons("mlt_Latn")) for other in others)


def test_random_like_a_set_that_fills_the_layer() -> None:
    """5 of 7 neurons: the control takes both others and draws the missing 3 from the set itself."""
    crowded = make_set(mlt_Latn=[(1, index) for index in range(5)])
    drawn = crowded.random_like("mlt_Latn", seed=0).per_layer("mlt_Latn")[1].tolist()
    assert len(drawn) == 5
    assert {5, 6} < set(drawn)


def test_random_like_of_several_languages_is_one_draw() -> None:
    """As large as the languages' union in every layer, and free of all their neurons, whatever the seed."""
    neuron_set = make_set()
    union = set(MLT) | set(AFR)  # 2 neurons of layer 0, 3 of layer 2
    for seed in range(20):
        control = neuron_set.random_like("mlt_Latn", "afr_Latn", "kat_Geor", seed=seed)
        assert control.languages == ("mlt_Latn+afr_Latn+kat_Geor",)
        drawn = control.union(*control.languages)
        assert [len(layer) for layer in control.per_layer(*control.languages)] == [2, 0, 3]
        assert not set(as_pairs(drawn)) & union


def test_random_like_is_uniform_outside_the_set() -> None:
    """2 of the 5 others in layer 0, over 2000 seeds: each 800 times (standard deviation 22)."""
    neuron_set = make_set()
    times = torch.zeros(7)
    for seed in range(2000):
        times[neuron_set.random_like("mlt_Latn", seed=seed).per_layer("mlt_Latn")[0]] += 1
    assert times[[1, 6]].tolist() == [0, 0]
    assert bool(((times[[0, 2, 3, 4, 5]] - 800).abs() < 5 * 22).all())


def test_missing_target_is_refused() -> None:
    with pytest.raises(UserError, match=r"no language cym_Latn; it has mlt_Latn, afr_Latn, kat_Geor"):
        make_set().neurons("cym_Latn")
    with pytest.raises(UserError, match="no language cym_Latn"):
        make_set().per_layer("cym_Latn")


def test_other_model_is_refused() -> None:
    neuron_set = make_set()
    neuron_set.check_model("f" * 64, num_layers=3, neurons_per_layer=7)
    with pytest.raises(UserError, match="another model: made from weights ffffffffffffffff"):
        neuron_set.check_model("0" * 64, num_layers=3, neurons_per_layer=7)
    with pytest.raises(UserError, match="3 layers × 7 neurons"):
        neuron_set.check_model("f" * 64, num_layers=3, neurons_per_layer=8)
    replace(neuron_set, model_fingerprint="").check_model("0" * 64, num_layers=3, neurons_per_layer=7)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(3, 0)], "outside the model"),
        ([(0, 7)], "outside the model"),
        ([(-1, 0)], "outside the model"),
        ([(0, 2), (0, 1)], "not sorted"),
        ([(0, 1), (0, 1)], "named twice"),
    ],
)
def test_bad_indices_are_refused(pairs: Pairs, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_set(mlt_Latn=pairs)


def test_wrong_dtype_is_refused() -> None:
    with pytest.raises(UserError, match=r"torch.int64"):
        NeuronSet({"mlt_Latn": as_tensor(MLT).long()}, 3, 7, "tiny", "", "lape", {})


def test_file_that_is_no_neuron_set_is_refused(tmp_path: Path) -> None:
    save_file({"mlt_Latn": as_tensor(MLT)}, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="not a file of neuron set"):
        NeuronSet.load(tmp_path / "bare.safetensors")
    save_file(
        {"mlt_Latn": as_tensor(MLT)},
        tmp_path / "poor.safetensors",
        metadata={"kind": "neuron set", "schema_version": "1"},
    )
    with pytest.raises(UserError, match="lacks 'languages'"):
        NeuronSet.load(tmp_path / "poor.safetensors")
