"""Counts from several clusters, added up and selected from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lape_ds import cli
from lape_ds.errors import UserError
from lape_ds.neurons.counts import CountedBlocks, Counts
from lape_ds.neurons.merging import Merged, merge_counts
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.neurons.selection import select_neurons
from lape_ds.recipe import IdentifySection
from tests.neurons.test_selection import make_counts


def of_part(code: str, part: int, **settings: object) -> Counts:
    counts = make_counts(code, seed=part)
    return replace(
        counts,
        parts=(CountedBlocks("c", 10 * part, 10 * part + 5, 60),),
        settings=replace(counts.settings, **settings),
    )


def write(folder: Path, *several: Counts) -> Path:
    for counts in several:
        counts.save(folder / f"{counts.settings.language}.safetensors")
    return folder


def test_files_add_up(tmp_path: Path) -> None:
    parts = [of_part("mlt_Latn", part) for part in range(3)]
    paths = [write(tmp_path / str(n), part) / "mlt_Latn.safetensors" for n, part in enumerate(parts)]
    done = merge_counts(paths, tmp_path / "out" / "mlt.safetensors")
    merged = Counts.load(tmp_path / "out" / "mlt.safetensors")
    assert torch.equal(merged.active, parts[0].active + parts[1].active + parts[2].active)
    assert torch.equal(merged.tokens, parts[0].tokens + parts[1].tokens + parts[2].tokens)
    assert merged.activation_sums is not None
    assert merged.activation_sums.tolist() == sum(part.activation_sums for part in parts).tolist()  # pyright: ignore
    assert [part.start for part in merged.parts] == [0, 10, 20]
    assert done == [Merged("mlt_Latn", 3, sum(int(part.tokens.sum()) for part in parts))]


def test_folders_add_up_by_language(tmp_path: Path) -> None:
    """A language of one folder alone is taken as it is; other files of the folder are not touched."""
    a = write(tmp_path / "a", of_part("mlt_Latn", 0), of_part("kat_Geor", 0))
    b = write(tmp_path / "b", of_part("mlt_Latn", 1))
    (b / "notes.txt").write_text("hello")
    done = merge_counts([a, b], tmp_path / "out")
    assert [(merged.language, merged.num_files) for merged in done] == [("kat_Geor", 1), ("mlt_Latn", 2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "kat_Geor.safetensors",
        "mlt_Latn.safetensors",
    ]
    expected = of_part("mlt_Latn", 0).active + of_part("mlt_Latn", 1).active
    assert torch.equal(Counts.load(tmp_path / "out" / "mlt_Latn.safetensors").active, expected)


def test_what_is_unsure_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A gap between the parts; two corpora, which may be one whose files were copied. What follows on is told nothing of."""
    a, b = (of_part("mlt_Latn", part) for part in (0, 2))
    copied = replace(of_part("mlt_Latn", 3), parts=(CountedBlocks("d", 0, 5, 60),))
    following = replace(of_part("mlt_Latn", 1), parts=(CountedBlocks("c", 5, 10, 60),))
    paths = [write(tmp_path / str(n), one) for n, one in enumerate((a, b, copied, following))]
    merge_counts([paths[0], paths[3]], tmp_path / "whole")
    assert caplog.messages == []
    merge_counts(paths[:2], tmp_path / "gap")
    assert [line[:30] for line in caplog.messages] == ["mlt_Latn lacks blocks 5–20 of "]
    caplog.clear()
    merge_counts([paths[0], paths[2]], tmp_path / "two")
    assert [line[:43] for line in caplog.messages] == ["mlt_Latn is counted of 2 corpora (c, d): te"]


def test_one_text_counted_from_two_copies_is_refused(tmp_path: Path) -> None:
    """Its corpus fingerprint differs, since a copy's time of change does; the counts are the same."""
    first = of_part("mlt_Latn", 0)
    second = replace(first, parts=(CountedBlocks("d", 0, 5, 60),))
    with pytest.raises(UserError, match=r"a/mlt_Latn.* and .*b/mlt_Latn.* very same counts"):
        merge_counts([write(tmp_path / "a", first), write(tmp_path / "b", second)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unlike_settings_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within a language, and between languages; nothing is written."""
    a = write(tmp_path / "a", of_part("mlt_Latn", 0))
    b = write(tmp_path / "b", of_part("mlt_Latn", 1, context_length=64))
    c = write(tmp_path / "c", of_part("kat_Geor", 1, dtype="bfloat16"))
    d = write(tmp_path / "d", of_part("mlt_Latn", 1, attn_implementation="flash_attention_2"))
    for other, message in (
        (b, r"b/mlt_Latn.safetensors: counts differ in context_length (12 and 64)"),
        (c, "counts of mlt_Latn and kat_Geor differ in dtype (float32 and bfloat16)"),
        (d, "counts differ in attn_implementation (sdpa and flash_attention_2)"),
    ):
        monkeypatch.setattr(
            "sys.argv", ["lape-ds", "neurons", "merge", str(a), str(other), str(tmp_path / "out")]
        )
        with pytest.raises(SystemExit) as caught:
            cli.main()
        told = capsys.readouterr().err
        assert caught.value.code == 2
        assert message in told
        assert told.count("\n") == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


def test_what_cannot_be_merged(tmp_path: Path) -> None:
    a = write(tmp_path / "a", of_part("mlt_Latn", 0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="share text: blocks 0–5 and 0–5"):
        merge_counts([a, write(tmp_path / "same", of_part("mlt_Latn", 0))], tmp_path / "out")
    with pytest.raises(UserError, match="two or more"):
        merge_counts([a], tmp_path / "out")
    with pytest.raises(UserError, match="exists; name a new folder"):
        merge_counts([a, a], a)
    with pytest.raises(UserError, match=r"is a file and .*a a folder"):
        merge_counts([a, a / "mlt_Latn.safetensors"], tmp_path / "out")
    with pytest.raises(UserError, match="empty holds no counts"):
        merge_counts([a, tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(UserError, match="no such file"):
        merge_counts([a / "mlt_Latn.safetensors", a / "none.safetensors"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_selected_from_the_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a recipe whose texts are elsewhere, as a published atlas's are."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: r\noutput_dir: out\nlanguages: {target: mt, identify: [mt, ka]}\nmodel: {path: base}\n"
        "corpus: {source: {kind: files, path: not-here}}\n"
        "identify: {top_rate: 0.2, filter_rate: 0.75, activation_bar_ratio: 0.75}\n"
    )
    folder = write(tmp_path / "counts", of_part("kat_Geor", 0), of_part("mlt_Latn", 1))
    out = tmp_path / "neurons.safetensors"

    def run(*arguments: str) -> int | str | None:
        monkeypatch.setattr("sys.argv", ["lape-ds", "neurons", "select", str(recipe), *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code

    assert run(str(folder), str(out)) == 0
    found = NeuronSet.load(out)
    section = IdentifySection(top_rate=0.2, filter_rate=0.75, activation_bar_ratio=0.75)
    expected = select_neurons(section, [of_part("mlt_Latn", 1), of_part("kat_Geor", 0)])
    assert found.languages == ("mlt_Latn", "kat_Geor")
    assert all(torch.equal(found.neurons(code), expected.neurons(code)) for code in found.languages)
    capsys.readouterr()
    assert run(str(folder), str(out), "languages.identify=[mt, ka, en]") == 2
    assert "counts has no counts of eng_Latn (languages.identify)" in capsys.readouterr().err
