"""The recipe's `env:` block, and how it gets into a process.

Every process of a stage enters it by itself, whoever started it: pdsh carries no environment to other hosts, and torchrun and
srun know no recipe. Needs no torch.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

_ENTERED = "LAPE_DS_ENTERED"  # the process (its number outlasts exec) that has entered its recipe's block
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What launchers tell each rank, and what this package needs to be found.
_OURS = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT"]
_OURS += ["CROSS_RANK", "CROSS_SIZE", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "CUDA_VISIBLE_DEVICES"]
_OURS += ["PYTHONPATH", _ENTERED]
_OURS_BEGIN = ("SLURM_", "TORCHELASTIC_", "PMI_", "PMIX_")


def _text(value: object) -> object:
    """Numbers are written as they stand; anything else must be text already."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _check(block: dict[str, str]) -> dict[str, str]:
    for name, value in block.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of an environment variable (letters, digits and _)")
        if name in _OURS or name.startswith(_OURS_BEGIN):
            raise ValueError(f"{name} is set by the launcher for each rank; remove it")
        if "\0" in value:
            raise ValueError(f"{name} holds a zero byte, which no environment variable can")
    return block


Environment = Annotated[dict[str, Annotated[str, BeforeValidator(_text)]], AfterValidator(_check)]


def enter_environment(block: Mapping[str, str]) -> None:
    """Starts this process anew, under the same number, if it lacks what the block says.

    Setting a variable in a running process is too late for what is read when a program begins (LD_PRELOAD, MALLOC_*, PYTHON*).
    """
    here = str(os.getpid())
    if os.environ.get(_ENTERED) == here or all(os.environ.get(name) == block[name] for name in block):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **block, _ENTERED: here})
