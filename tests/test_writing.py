"""Whole or not at all, also when writing stops in the middle."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from lape_ds import writing
from lape_ds.errors import UserError
from lape_ds.writing import check_writable, whole_file, whole_folder, write_json, write_text

MARKERS = ("config.json", "tokenizer.json")


def stop_halfway(path: Path) -> None:
    path.write_text("half")
    raise KeyboardInterrupt


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_file_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.bin"
    write_text(path, "one")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        stop_halfway(temporary)
    assert contents(tmp_path) == {"deep/a.bin": "one"}
    write_text(path, "two")
    assert contents(tmp_path) == {"deep/a.bin": "two"}


def test_json_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": "ħ"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": "ħ"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_on_the_disk_before_the_name_and_the_name_before_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a loss of power leaves: the order of the system calls, which themselves are made."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        calls.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")

    def recorded_replace(source: Path, target: Path) -> None:
        replace(source, target)
        calls.append(f"rename {target.name}")

    monkeypatch.setattr(writing.os, "fsync", recorded_fsync)
    monkeypatch.setattr(writing.os, "replace", recorded_replace)
    write_text(tmp_path / "a", "one")
    file, *names = calls
    assert file.startswith("sync .a.")
    assert names == ["rename a", f"sync {tmp_path.name}"]
    calls.clear()
    with whole_folder(tmp_path / "model", marker_files=MARKERS) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "config.json").touch()
    *within, renamed, parent = calls
    assert {call.removeprefix("sync ") for call in within} == {"config.json", "deep", temporary.name}
    assert (renamed, parent) == ("rename model", f"sync {tmp_path.name}")


@pytest.mark.parametrize("marker", MARKERS)
def test_folder_replaces_an_earlier_one(tmp_path: Path, marker: str) -> None:
    target = tmp_path / "deep" / "model"
    for name, other in ((marker, "first"), ("config.json", "second")):
        with whole_folder(target, marker_files=MARKERS) as temporary:
            assert not list(temporary.iterdir())
            (temporary / name).write_text(name)
            (temporary / other).touch()
    assert contents(target) == {"config.json": "config.json", "second": ""}
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_folder_whole_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for before in ({}, {"model/config.json": "earlier"}):
        for name, text in before.items():
            write_text(tmp_path / name, text)
        with pytest.raises(KeyboardInterrupt), whole_folder(target, marker_files=MARKERS) as temporary:
            stop_halfway(temporary / "config.json")
        assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_interrupted_between_two_renames_the_earlier_folder_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "model" / "config.json", "earlier")
    replace, calls = os.replace, []

    def stop_at_the_second(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(writing.os, "replace", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "model", marker_files=MARKERS):
        pass
    assert contents(tmp_path) == {"model/config.json": "earlier"}


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    """Before the first byte; a folder without anything in it is nobody's."""
    write_text(tmp_path / "thesis" / "chapter1.txt", "years of work")
    for target, message in (
        (tmp_path / "thesis", r"holds other things .*only a folder with config\.json or tokenizer\.json"),
        (tmp_path / "thesis" / "chapter1.txt", "is a file"),
    ):
        with pytest.raises(UserError, match=message), whole_folder(target, marker_files=MARKERS):
            pytest.fail("was let in")
    assert contents(tmp_path) == {"thesis/chapter1.txt": "years of work"}
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty", marker_files=MARKERS) as temporary:
        (temporary / "x").write_text("x")
    assert contents(tmp_path / "empty") == {"x": "x"}


def test_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    write_text(tmp_path / "disk" / "model" / "config.json", "earlier")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    with whole_folder(tmp_path / "link", marker_files=MARKERS) as temporary:
        (temporary / "config.json").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "model" / "config.json").read_text() == "new"


def test_a_folder_below_a_file_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(
        UserError, match=r"/runs is a file, so .*/runs/train/full cannot be made below it; set another"
    ):
        check_writable(tmp_path / "runs" / "train" / "full")
    check_writable(tmp_path / "other" / "train")


def test_others_may_read_what_a_library_made_for_its_owner_alone(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    with whole_file(tmp_path / "one.safetensors") as temporary:
        temporary.touch(mode=0o600)
    with whole_folder(tmp_path / "model", marker_files=()) as folder:
        (folder / "two.safetensors").touch(mode=0o600)
    for path in (tmp_path / "one.safetensors", tmp_path / "model" / "two.safetensors"):
        assert path.stat().st_mode == usual.stat().st_mode
