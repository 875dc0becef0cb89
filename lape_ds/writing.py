"""Writing whole or not at all: an interruption leaves what was there before, or nothing.

Below every room: whatever is kept on disk is written under a hidden temporary name beside its place, then renamed. The
bytes are on the disk before the name is, and the name is before the writer goes on: that holds through a loss of power too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lape_ds.errors import UserError

_UMASK = os.umask(0)  # cannot be read without being set
os.umask(_UMASK)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write to, which takes the place of `path` if all went well.

    Args:
        path: The file; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    try:
        yield temporary
        give_usual_mode(temporary)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; its folder is made."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all; NaN and infinity are refused, for they are no JSON."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def whole_folder(folder: Path, *, marker_files: Collection[str]) -> Iterator[Path]:
    """Gives an empty temporary folder, which takes the place of `folder` if all went well.

    An earlier folder goes only when the new one is whole. A folder of something else is never replaced: it is refused
    before the first byte is written.

    Args:
        folder: Made, or replaced: where a symbolic link leads, not the link.
        marker_files: Names by which a folder is known as an earlier one of this kind; one of them is enough.

    Raises:
        UserError: `folder` is a file, or a folder that is neither empty nor an earlier one.
    """
    folder = folder.resolve()
    check_replaceable(folder, marker_files=marker_files)
    temporary, earlier = _beside(folder, "tmp"), _beside(folder, "old")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had our number
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            give_usual_mode(path)
            sync(path)
        if folder.exists():
            os.replace(folder, earlier)
        os.replace(temporary, folder)
        sync(folder.parent)
    finally:
        if earlier.exists() and not folder.exists():  # interrupted between the two
            os.replace(earlier, folder)
        shutil.rmtree(earlier, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(folder: Path, *, marker_files: Collection[str]) -> None:
    """Makes sure that `whole_folder` would write a folder, whose arguments and errors these are."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder that is not there yet, or is empty")
    if any(folder.iterdir()) and not any((folder / name).exists() for name in marker_files):
        raise UserError(
            f"{folder} holds other things and is left as it is (only a folder with {' or '.join(marker_files)} is "
            "replaced); name a folder that is not there yet, or is empty"
        )


def give_usual_mode(path: Path) -> None:
    """Lets others read a file if the umask does: safetensors makes its files for their owner alone (0.6 and later)."""
    if path.is_file():
        path.chmod(path.stat().st_mode | (0o666 & ~_UMASK))


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; the file is never whole in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until a file's bytes, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # fsync(2): what the filesystem gives no way to wait for, as FUSE does of folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def told_if_unwritable(what: str, *, kept: str = "earlier checkpoints") -> Iterator[None]:
    """Turns a failed write (disk full, read-only, over quota) into one line.

    Args:
        what: Is written, with its path.
        kept: What has been written before.

    Raises:
        UserError: The filesystem refused.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {what}: {error}; make room or mend the folder, then give the same command again ({kept} "
            "are as they were), or set another output_dir"
        ) from error


def check_writable(folder: Path) -> None:
    """Refuses a folder that cannot be written into or made, without touching it.

    Raises:
        UserError: It, or what is nearest above it, is read-only for us, or a file.
    """
    # Not `Path.exists`, which raises where a folder above must not be looked into.
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not there.is_dir():
        raise UserError(f"{there} is a file, so {folder} cannot be made below it; set another output_dir")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(
            f"{there} is read-only for this user on this machine: {folder} could not be written; make it writable or set another "
            "output_dir"
        )


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{suffix}")
