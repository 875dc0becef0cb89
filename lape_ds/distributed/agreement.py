"""Whether the ranks of a job have the same software, recipe and files: what each has seen, compared.

Beside ranks.py, by which they bring it together. Every rank comes to the same refusal, and one of them tells it.
"""

from __future__ import annotations

import hashlib
import platform
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import lape_ds
from lape_ds.distributed import ranks
from lape_ds.distributed.heartbeat_hub import name_ranks
from lape_ds.errors import UserError
from lape_ds.recipe import first_difference
from lape_ds.writing import told_if_unwritable

SAME_SOFTWARE = "install the same on every host, e.g. from requirements.lock"
_SECONDS_TO_SEE = 5.0  # a file with a name that nobody has asked for yet; network file systems may be late


def software() -> dict[str, str]:
    """What computes here, by name: versions, and a hash of our own code."""
    packages = {name: metadata.version(name) for name in ("deepspeed", "transformers")}
    code = hashlib.sha256()
    root = Path(lape_ds.__file__).parent
    for path in sorted(root.rglob("*.py")):
        code.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    own = f"{lape_ds.__version__} (code {code.hexdigest()[:8]})"
    return {
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        **packages,
        "lape_ds": own,
    }


def check_same(reports: Sequence[tuple[str, Mapping[str, str] | None]], advice: str) -> None:
    """Compares what ranks have found with what the first one has.

    Args:
        reports: Each rank's host and what it has found, by a name for each; None from a rank that has not looked.
        advice: What to do where they differ.

    Raises:
        UserError: They differ; names what, where and both values.
    """
    hosts = [host for host, _ in reports]
    first = reports[0][1]
    assert first is not None, "the first rank looks at everything"
    for _, there in reports:
        for name, value in (there or {}).items():
            if value != first.get(name):
                alike = [r for r, (_, other) in enumerate(reports) if other and other.get(name) == value]
                raise UserError(
                    f"{name}: {value} on {name_ranks(alike, hosts)}, {first.get(name)} on rank 0 on {hosts[0]}; {advice}"
                )


def check_same_recipe(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Compares the recipes of all ranks, each given with its host, with the first one's.

    Raises:
        UserError: They differ.
    """
    hosts = [host for host, _ in reports]
    for number, (_, content) in enumerate(reports):
        difference = first_difference("", content, reports[0][1])
        if difference is not None:
            key, there, first = difference
            raise UserError(
                f"the recipe's {key.removeprefix('.')}: {there} on {name_ranks([number], hosts)}, {first} on rank 0 on "
                f"{hosts[0]}; give all ranks the same recipe and the same key=value"
            )


def check_one_folder(folder: Path, why: str) -> None:
    """Makes sure that the first rank sees what the others write to a folder. All ranks that have joined must enter it.

    Args:
        folder: Must be there; a host that has none does not share it.
        why: What goes wrong otherwise, e.g. "checkpoints are written by all ranks into one folder".

    Raises:
        UserError: The folder cannot be written, or lies on a host's own disk; on all ranks alike.
    """
    if ranks.world_size() == 1:
        return
    token = ranks.meet(secrets.token_hex(8))[0]
    own = folder / f".rank-{ranks.rank()}-{token}"
    try:
        if folder.is_dir():
            with told_if_unwritable(f"to {folder}"):
                own.write_bytes(b"lape-ds\n")
        hosts = ranks.meet(socket.gethostname())
        names = [folder / f".rank-{number}-{token}" for number in range(len(hosts))]
        unseen = ranks.meet(_unseen(names) if ranks.rank() == 0 else None)[0]
    finally:
        own.unlink(missing_ok=True)
    if unseen:
        raise UserError(
            f"{folder} is not one folder: what {name_ranks(unseen, hosts)} writes there is not seen by rank 0 on {hosts[0]}, and "
            f"{why}; set output_dir to a file system that all nodes share"
        )


def _unseen(paths: Sequence[Path]) -> list[int]:
    until = time.monotonic() + _SECONDS_TO_SEE
    while (missing := [number for number, path in enumerate(paths) if not path.exists()]) and (
        time.monotonic() < until
    ):
        time.sleep(0.1)
    return missing
