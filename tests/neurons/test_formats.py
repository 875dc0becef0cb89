"""The published pickled format: read without running anything, written as both projects read it."""

from __future__ import annotations

import os
import pickle
import random
import warnings
from pathlib import Path

import pytest
import torch

from lape_ds.errors import UserError
from lape_ds.neurons.formats import export_published, import_published
from tests.neurons.test_neuron_set import AFR, MLT, as_pairs, make_set

CODES = ("mlt_Latn", "afr_Latn", "kat_Geor")


def test_round_trip_keeps_a_trailing_empty_language(tmp_path: Path) -> None:
    path = tmp_path / "published.pth"
    export_published(make_set(), path)
    nested = torch.load(path, weights_only=True)
    assert [[layer.tolist() for layer in layers] for layers in nested] == [
        [[1, 6], [], [0, 3]],
        [[6], [], [3, 4]],
        [[], [], []],
    ]
    assert {layer.dtype for layers in nested for layer in layers} == {torch.int64}
    back = import_published(path, CODES, neurons_per_layer=7, model_id="tiny")
    assert [as_pairs(back.neurons(code)) for code in CODES] == [MLT, AFR, []]
    assert (back.num_layers, back.method, back.model_fingerprint) == (3, "import", "")


def test_floating_point_empty_layers_are_read(tmp_path: Path) -> None:
    """`torch.tensor([])` is float32; some writers leave such layers behind."""
    torch.save([[torch.tensor([2, 1]), torch.tensor([])]], tmp_path / "a.pth")
    neuron_set = import_published(tmp_path / "a.pth", ["mlt_Latn"], neurons_per_layer=7, model_id="tiny")
    assert as_pairs(neuron_set.neurons("mlt_Latn")) == [(0, 1), (0, 2)]


class _Malicious:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_malicious_pickle_is_refused(tmp_path: Path, writer: str) -> None:
    path, victim = tmp_path / "evil.pth", tmp_path / "victim"
    if writer == "torch":
        torch.save([[_Malicious(victim)]], path)
    else:
        path.write_bytes(pickle.dumps([[_Malicious(victim)]], protocol=2))
    with pytest.raises(UserError, match="never run"):
        import_published(path, ["mlt_Latn"], neurons_per_layer=7, model_id="tiny")
    assert not victim.exists()
    pickle.loads(pickle.dumps(_Malicious(victim)))  # an ordinary reader would have made it
    assert victim.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mlt": 1}, "not a list"),
        ([], "not a list"),
        ([[torch.zeros(2)]], "not a 1-dimensional integer tensor"),
        ([[torch.zeros(2, 2, dtype=torch.int64)]], "not a 1-dimensional integer tensor"),
        ([[torch.tensor([7])]], "a.pth: .*outside the model"),
        ([[torch.tensor([True])]], "not a 1-dimensional integer tensor"),
        ([[torch.tensor([1]).to("meta")]], "not a 1-dimensional integer tensor"),
        ([[torch.tensor([1j])]], "not a 1-dimensional integer tensor"),
        ([[torch.tensor([1]).to_sparse()]], "not a 1-dimensional integer tensor"),
        ([[torch.tensor([1]).expand(10**15)]], "a layer has 1,000,000,000,000,000 neurons of one language"),
        ([[torch.tensor([1, 1])]], "named twice"),
        ([[torch.tensor([1])], [torch.tensor([1])]], "holds 2 languages, 1 were named"),
    ],
    ids=range(12),
)
def test_other_content_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=message):
        import_published(tmp_path / "a.pth", ["mlt_Latn"], neurons_per_layer=7, model_id="tiny")


def test_ragged_layers_and_doubled_names_are_refused(tmp_path: Path) -> None:
    torch.save([[torch.tensor([1])], [torch.tensor([1]), torch.tensor([1])]], tmp_path / "a.pth")
    with pytest.raises(UserError, match="different numbers of layers"):
        import_published(tmp_path / "a.pth", ["mlt_Latn", "afr_Latn"], neurons_per_layer=7, model_id="tiny")
    with pytest.raises(UserError, match="named twice"):
        import_published(tmp_path / "a.pth", ["mlt_Latn", "mlt_Latn"], neurons_per_layer=7, model_id="tiny")
    with pytest.raises(UserError, match="no such file"):
        import_published(tmp_path / "b.pth", ["mlt_Latn"], neurons_per_layer=7, model_id="tiny")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_file_is_read_or_refused(tmp_path: Path, zipped: bool) -> None:
    """Cut short, or some bytes others: never anything but a set or our refusal."""
    path, dice = tmp_path / "a.pth", random.Random(0)
    torch.save([[torch.tensor([1, 5]), torch.tensor([2])]], path, _use_new_zipfile_serialization=zipped)
    whole, refused = path.read_bytes(), 0
    for number in range(200):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        path.write_bytes(damaged if number % 4 else whole[: dice.randrange(len(whole))])
        with warnings.catch_warnings():  # torch warns of what it does not know
            warnings.simplefilter("ignore")
            try:
                import_published(path, ["mlt_Latn"], neurons_per_layer=7, model_id="tiny")
            except UserError:
                refused += 1
    assert refused > 100
