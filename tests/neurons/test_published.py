"""Importing what others have published: known files, and a model's shape."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from lape_ds import cli
from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.model.loading import fingerprint
from lape_ds.neurons import published
from lape_ds.neurons.formats import export_published
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.neurons.published import KNOWN, PublishedFile, import_file
from tests.neurons.test_neuron_set import AFR, MLT, as_pairs, make_set
from tests.tiny_models import tiny_model

CODES = ["mlt_Latn", "afr_Latn", "kat_Geor"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """3 layers; the last language has no neurons."""
    export_published(make_set(), tmp_path / "some-5")
    return tmp_path / "some-5"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 layers x 23 neurons."""
    folder = tmp_path_factory.mktemp("published") / "model"
    tiny_model("llama").save_pretrained(folder)
    return folder


def test_the_nine_files() -> None:
    """method.md: two of the reference with twelve languages, seven of the LAPE authors, of which five hold no Japanese."""
    assert len(KNOWN) == 9
    assert all(len(digest) == 64 for digest in KNOWN)
    sizes = sorted(len(known.languages) for known in KNOWN.values())
    assert sizes == [6] * 5 + [7] * 2 + [12] * 2
    for known in KNOWN.values():
        codes = [find_language(language).code for language in known.languages]
        assert codes[0] in ("mlt_Latn", "eng_Latn")
        assert codes[1] in ("afr_Latn", "cmn_Hans")


def test_known_file_needs_nothing_more(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its content, under any name: languages, model and size come from the table; nothing is fetched."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(published.KNOWN, digest, PublishedFile("x-5", "org/x", 7, ("mt", "af", "ka")))
    monkeypatch.setattr(published, "resolve_model", lambda *_, **__: pytest.fail("a model was looked for"))
    found = import_file(file)
    assert [as_pairs(found.neurons(code)) for code in CODES] == [MLT, AFR, []]
    assert (found.model_id, found.num_layers, found.neurons_per_layer) == ("org/x", 3, 7)
    assert import_file(file, languages=["af", "mt", "en"]).languages == ("afr_Latn", "mlt_Latn", "eng_Latn")


def test_unknown_file_needs_names(file: Path) -> None:
    with pytest.raises(
        UserError, match=r"some-5: name its languages in the file's order: --languages.*llama-3\.1-5, nemo-5"
    ):
        import_file(file)
    with pytest.raises(UserError, match="name its model: --model"):
        import_file(file, languages=CODES)
    with pytest.raises(UserError, match="no such file"):
        import_file(file.with_name("other"), languages=CODES, model="org/x")


def test_shape_is_the_models(file: Path, model: Path) -> None:
    found = import_file(file, languages=CODES, model=str(model))
    assert (found.neurons_per_layer, found.model_fingerprint) == (23, fingerprint(model))
    without = import_file(file, languages=CODES, model=str(model), with_fingerprint=False)
    assert (without.neurons_per_layer, without.model_fingerprint) == (23, "")


def test_file_of_another_model_is_refused(tmp_path: Path, model: Path) -> None:
    torch.save([[torch.tensor([1]), torch.tensor([2])]], tmp_path / "two-layers.pth")
    with pytest.raises(
        UserError, match=r"two-layers.pth is of another model: 2 layers × 23 neurons; .* has 3 × 23"
    ):
        import_file(tmp_path / "two-layers.pth", languages=["mt"], model=str(model))
    torch.save([[torch.tensor([1]), torch.tensor([23]), torch.tensor([2])]], tmp_path / "wide.pth")
    with pytest.raises(
        UserError, match=r"wide\.pth: neurons of mlt_Latn reach outside the model of 3 layers × 23"
    ):
        import_file(tmp_path / "wide.pth", languages=["mt"], model=str(model))
    with pytest.raises(UserError, match=r"3 layers × 40 neurons; .* has 3 × 23"):
        import_file(tmp_path / "wide.pth", languages=["mt"], model=str(model), neurons_per_layer=40)


def test_size_instead_of_a_model(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "resolve_model", lambda *_, **__: pytest.fail("a model was looked for"))
    found = import_file(file, languages=CODES, model="org/x", neurons_per_layer=9, with_fingerprint=False)
    assert (found.model_id, found.neurons_per_layer) == ("org/x", 9)


def test_command_and_the_way_back(
    file: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """import, then export: the very same lists, the trailing empty language among them."""
    out, again = file.with_name("out.safetensors"), file.with_name("again.pth")
    for arguments in (
        ["import", str(file), str(out), "--languages", "mt,af,ka", "--model", str(model)],
        ["export", str(out), str(again)],
    ):
        monkeypatch.setattr("sys.argv", ["lape-ds", "neurons", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 0
    assert NeuronSet.load(out).languages == tuple(CODES)
    before, after = (torch.load(path, weights_only=True) for path in (file, again))
    assert [[layer.tolist() for layer in layers] for layers in before] == [
        [layer.tolist() for layer in layers] for layers in after
    ]
    assert "languages in order: mlt_Latn,afr_Latn,kat_Geor" in capsys.readouterr().out
