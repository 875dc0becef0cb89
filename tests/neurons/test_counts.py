"""The counts artefact: its file, its sums, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.neurons.artefact import read_metadata
from lape_ds.neurons.counts import CountedBlocks, Counts, CountSettings

SETTINGS = CountSettings("mlt_Latn", "tiny", "f" * 64, 12, "float32")


def make_counts(*, start: int = 0, seed: int = 0) -> Counts:
    """Random counts of 2 layers × 3 neurons, 50 tokens a bucket."""
    generator = torch.Generator().manual_seed(seed)
    active = torch.randint(0, 51, (16, 2, 3), dtype=torch.int32, generator=generator)
    return Counts(active, torch.full((16,), 50), SETTINGS, (CountedBlocks("c0ffee", start, start + 4, 48),))


def test_round_trip(tmp_path: Path) -> None:
    counts = make_counts()
    counts.save(tmp_path / "counts" / "mlt_Latn.safetensors")
    loaded = Counts.load(tmp_path / "counts" / "mlt_Latn.safetensors")
    assert torch.equal(loaded.active, counts.active)
    assert torch.equal(loaded.tokens, counts.tokens)
    assert (loaded.settings, loaded.parts) == (counts.settings, counts.parts)
    assert [path.name for path in (tmp_path / "counts").iterdir()] == [
        "mlt_Latn.safetensors"
    ]  # no temporary left


def test_probabilities() -> None:
    counts = make_counts()
    expected = [
        [sum(int(counts.active[b, layer, i]) for b in range(16)) / 800 for i in range(3)]
        for layer in range(2)
    ]
    assert counts.probabilities().tolist() == expected
    assert counts.probabilities().dtype == torch.float64


def test_merge_adds() -> None:
    first, second = make_counts(), make_counts(start=4, seed=1)
    merged = second.merge(first)
    assert torch.equal(merged.active, first.active + second.active)
    assert torch.equal(merged.tokens, first.tokens + second.tokens)
    assert merged.parts == (*first.parts, *second.parts)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("language", "afr_Latn"),
        ("model_fingerprint", "0" * 64),
        ("context_length", 13),
        ("dtype", "bfloat16"),
    ],
)
def test_unlike_settings_do_not_merge(field: str, value: object) -> None:
    other = make_counts(start=4)
    other = replace(other, settings=replace(other.settings, **{field: value}))
    with pytest.raises(UserError, match=f"differ in {field}"):
        make_counts().merge(other)


def test_same_model_in_another_folder_merges() -> None:
    other = make_counts(start=4)
    merged = make_counts().merge(replace(other, settings=replace(other.settings, model_id="elsewhere/tiny")))
    assert merged.settings.model_id == "tiny"


def test_same_text_does_not_merge_twice() -> None:
    with pytest.raises(UserError, match="share text: blocks 0–4 and 3–7"):
        make_counts().merge(make_counts(start=3))


def test_merge_that_leaves_int32_is_refused() -> None:
    huge = replace(make_counts(), tokens=torch.full((16,), 2**31 - 10))
    with pytest.raises(UserError, match="more than 2147483647 tokens"):
        huge.merge(make_counts(start=4))


def _nan(tensors: dict[str, Tensor]) -> None:
    tensors["active"] = tensors["active"].float().index_fill(0, torch.tensor([2]), torch.nan)


def _negative(tensors: dict[str, Tensor]) -> None:
    tensors["active"][1, 0, 2] = -1


def _more_than_tokens(tensors: dict[str, Tensor]) -> None:
    tensors["active"][1, 0, 2] = 51


def _wrong_type(tensors: dict[str, Tensor]) -> None:
    tensors["active"] = tensors["active"].long()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_nan, "NaN"),
        (_negative, "negative"),
        (_more_than_tokens, "more tokens than there are"),
        (_wrong_type, "int64"),
    ],
)
def test_damaged_file_is_refused(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "mlt_Latn.safetensors"
    make_counts().save(path)
    metadata = read_metadata(path, kind="activation counts", schema_version=1)
    tensors = load_file(path)
    damage(tensors)  # type: ignore[operator]
    save_file(tensors, path, metadata=metadata)
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"mlt_Latn.safetensors.*{message}"):
        Counts.load(path)
    assert path.read_bytes() == before


def test_no_file_no_safetensors_no_counts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Counts.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        Counts.load(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a file of activation counts"):
        Counts.load(tmp_path / "other.safetensors")


def test_other_schema_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "counts.safetensors"
    make_counts().save(path)
    metadata = read_metadata(path, kind="activation counts", schema_version=1)
    save_file(load_file(path), path, metadata=metadata | {"schema_version": "2"})
    with pytest.raises(UserError, match="schema version 2"):
        Counts.load(path)
