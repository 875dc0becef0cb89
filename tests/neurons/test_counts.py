"""The counts artefact: its file, its sums, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.neurons.artefact import read_metadata
from lape_ds.neurons.counts import CountedBlocks, Counts, CountSettings, CountsFiles

SETTINGS = CountSettings("mlt_Latn", "tiny", "f" * 64, 12, "float32")


def make_counts(*, start: int = 0, seed: int = 0) -> Counts:
    """Random counts of 2 layers × 3 neurons, 50 tokens a bucket."""
    generator = torch.Generator().manual_seed(seed)
    active = torch.randint(0, 51, (16, 2, 3), dtype=torch.int32, generator=generator)
    return Counts(active, torch.full((16,), 50), SETTINGS, (CountedBlocks("c0ffee", start, start + 4, 48),))


def make_mixture_counts(*, start: int = 0, seed: int = 0) -> Counts:
    """Random counts of 2 layers × 3 experts × 2 neurons: 50 tokens a bucket, up to 40 of them for each expert."""
    generator = torch.Generator().manual_seed(seed)
    expert_tokens = torch.randint(20, 41, (16, 2, 3), generator=generator)
    active = torch.randint(0, 21, (16, 2, 6), dtype=torch.int32, generator=generator)
    part = CountedBlocks("c0ffee", start, start + 4, 48)
    return Counts(active, torch.full((16,), 50), SETTINGS, (part,), expert_tokens)


def test_mixture_round_trip_and_merge(tmp_path: Path) -> None:
    first, second = make_mixture_counts(), make_mixture_counts(start=4, seed=1)
    first.save(tmp_path / "mlt_Latn.safetensors")
    loaded = Counts.load(tmp_path / "mlt_Latn.safetensors")
    assert loaded.expert_tokens is not None
    assert first.expert_tokens is not None
    assert second.expert_tokens is not None
    assert torch.equal(loaded.expert_tokens, first.expert_tokens)
    merged = loaded.merge(second)
    assert merged.expert_tokens is not None
    assert torch.equal(merged.expert_tokens, first.expert_tokens + second.expert_tokens)
    assert torch.equal(merged.active, first.active + second.active)


def test_sums_of_activations_round_trip_and_merge(tmp_path: Path) -> None:
    """800 tokens: 3 units each make a mean of 3/2^20; counts with sums and without do not merge."""
    sums = torch.tensor([[2400, -800, 0], [0, 0, 1]])
    first = replace(make_counts(), activation_sums=sums)
    first.save(tmp_path / "mlt_Latn.safetensors")
    loaded = Counts.load(tmp_path / "mlt_Latn.safetensors")
    assert loaded.activation_sums is not None
    assert torch.equal(loaded.activation_sums, sums)
    assert loaded.mean_activations()[0].tolist() == [3 / 2**20, -1 / 2**20, 0]
    merged = loaded.merge(replace(make_counts(start=4), activation_sums=sums))
    assert merged.activation_sums is not None
    assert torch.equal(merged.activation_sums, 2 * sums)
    with pytest.raises(UserError, match=r"differ in the shape of activation_sums \(\[2, 3\] and None\)"):
        first.merge(make_counts(start=4))
    with pytest.raises(UserError, match=r"activation_sums is .*, which does not fit active"):
        replace(first, activation_sums=sums[:1])


def test_files_are_checked_once_and_again_when_written_anew(tmp_path: Path) -> None:
    """Gone through twice, then with another file in a place; the damage stands in tensors that only a check looks at."""
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for k, path in enumerate(paths):
        make_counts(seed=k).save(path)
    files = CountsFiles(paths)
    for _ in range(2):
        assert [counts.active.tolist() for counts in files()] == [
            make_counts(seed=k).active.tolist() for k in range(2)
        ]
    good = make_counts()
    damaged = replace(good, active=torch.full_like(good.active, 51), check=False)
    damaged.save(paths[1])
    assert torch.equal(Counts.load(paths[1], check=False).active, damaged.active)
    for _ in range(2):  # what was refused is not taken as checked
        with pytest.raises(UserError, match=r"b\.safetensors: .*active on more tokens than there are"):
            list(files())
    paths[0].unlink()
    with pytest.raises(UserError, match=r"no such file: .*a\.safetensors"):
        list(files())


def test_files_are_not_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_counts().save(tmp_path / "a.safetensors")
    checks: list[bool] = []
    load = Counts.load

    def recorded(path: Path, *, check: bool) -> Counts:
        checks.append(check)
        return load(path, check=check)

    monkeypatch.setattr(Counts, "load", recorded)
    files = CountsFiles([tmp_path / "a.safetensors"])
    for _ in range(3):
        list(files())
    assert checks == [True, False, False]


def test_mixture_probabilities_are_over_all_tokens() -> None:
    counts = make_mixture_counts()
    assert counts.probabilities().tolist() == (counts.active.sum(0).double() / 800).tolist()


def test_mixture_and_dense_do_not_merge() -> None:
    dense = replace(make_mixture_counts(start=4), expert_tokens=None)
    with pytest.raises(UserError, match=r"differ in the shape of expert_tokens \(\[16, 2, 3\] and None\)"):
        make_mixture_counts().merge(dense)


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
    assert merged.parts == (CountedBlocks("c0ffee", 0, 8, 96),)  # told as if it had been counted at once


def test_only_neighbours_of_one_text_become_one_stretch() -> None:
    first = make_counts()
    for start, corpus in ((5, "c0ffee"), (4, "other")):
        part = CountedBlocks(corpus, start, start + 4, 48)
        merged = first.merge(replace(make_counts(seed=1), parts=(part,)))
        assert merged.parts == tuple(sorted([*first.parts, part]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("language", "afr_Latn"),
        ("model_fingerprint", "0" * 64),
        ("context_length", 13),
        ("dtype", "bfloat16"),
        ("reset_positions", True),
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


def _experts_beyond_tokens(tensors: dict[str, Tensor]) -> None:
    tensors["expert_tokens"][1, 0, 2] = 51


def _active_beyond_its_expert(tensors: dict[str, Tensor]) -> None:
    tensors["active"][1, 0, 5] = 42  # of expert 2, which has at most 40 of the bucket's 50 tokens


def _experts_that_do_not_divide(tensors: dict[str, Tensor]) -> None:
    tensors["expert_tokens"] = torch.zeros(16, 2, 4, dtype=torch.int64)


def _negative_expert(tensors: dict[str, Tensor]) -> None:
    tensors["expert_tokens"][1, 0, 2] = -1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_experts_beyond_tokens, "an expert has more tokens than there are"),
        (_active_beyond_its_expert, "a neuron is active on more tokens than there are"),
        (_experts_that_do_not_divide, "does not fit active"),
        (_negative_expert, "negative counts in expert_tokens"),
    ],
)
def test_damaged_mixture_counts_are_refused(
    damage: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    counts = make_mixture_counts()
    assert counts.expert_tokens is not None
    tensors = {"active": counts.active, "expert_tokens": counts.expert_tokens}
    damage(tensors)
    with pytest.raises(UserError, match=message):
        replace(counts, **tensors)


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
