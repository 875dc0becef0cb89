"""Checksums of what a checkpoint holds, so that damage is seen before it is trained on.

Below checkpoint.py. XXH3 finds what disks, networks and half-finished copies do; it is no protection against forgery.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

_CHUNK_BYTES = 16 << 20
SEAL = "xxh3_128"  # the name of a digest in JSON
_SECONDS_BEFORE_READING_AGAIN = 5.0


def file_seal(path: Path) -> dict[str, Any]:
    """Size and digest of a whole file, read in chunks."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
        return {"bytes": file.tell(), SEAL: digest.hexdigest()}


def damaged_size(path: Path, seal: Mapping[str, Any]) -> str | None:
    """What is wrong with a file as far as its size tells, without reading it; None if nothing."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"{path.name} is missing"
    return None if size == seal["bytes"] else f"{path.name} has {size:,} bytes, not {seal['bytes']:,}"


def damaged_bytes(path: Path, seal: Mapping[str, Any]) -> str | None:
    """What is wrong with a file, which is read to its end; None if nothing."""
    if (reason := damaged_size(path, seal)) is not None:
        return reason
    try:
        found = _read_twice(path)
    except OSError as error:
        if error.errno != errno.EIO:  # a bad sector is damage; no permission is not
            raise
        return f"{path.name} cannot be read ({error.strerror})"
    return None if found == seal else f"{path.name} is not what was written (its checksum differs)"


def _read_twice(path: Path) -> dict[str, Any]:
    """`file_seal`, with a second try: a network filesystem gives EIO too when its server is slow."""
    try:
        return file_seal(path)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        time.sleep(_SECONDS_BEFORE_READING_AGAIN)
        return file_seal(path)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """JSON content with its own digest in it."""
    return {**content, SEAL: _json_digest(content)}


def seal_holds(content: Mapping[str, Any]) -> bool:
    """Whether content that was read is what `sealed` gave."""
    return content.get(SEAL) == _json_digest(unsealed(content))


def unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content without its digest."""
    return {key: value for key, value in content.items() if key != SEAL}


def _json_digest(content: Mapping[str, Any]) -> str:
    """The same for the same content, however the file is laid out."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
