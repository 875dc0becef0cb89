"""How much of a machine's memory is left for us: a container or a Slurm job may be given less than the machine has.

Below whatever plans with it: offload in training/plan, the bootstrap in neurons/stability.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

_PROC = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that the processes of this machine can still take together without swapping or being killed."""
    return min([psutil.virtual_memory().available, *left_in_groups(_PROC, _ROOT)])


def left_in_groups(listed: Path, root: Path) -> Iterator[int]:
    """What each control group that this process is in has left, for all that have a limit.

    Pages of files count as used there and are given back when memory is short, so they count as left.

    Args:
        listed: `/proc/self/cgroup`, which names the groups.
        root: Where their files are mounted. Source: Linux's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    for line in listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            names, prefix, mounted = ("memory.max", "memory.current"), "", root
        elif "memory" in controllers.split(","):
            names, prefix, mounted = (
                ("memory.limit_in_bytes", "memory.usage_in_bytes"),
                "total_",
                root / "memory",
            )
        else:
            continue
        # A limit holds for all groups below. A container may be told the path that its group has outside: only the top is there.
        group = mounted / path.lstrip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(mounted.parts)]):
            limit = _read(folder / names[0])
            if limit.isdecimal():  # not "max", and not missing
                used = int(_read(folder / names[1])) - _pages_of_files(folder / "memory.stat", prefix)
                yield max(0, int(limit) - used)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _pages_of_files(stat: Path, prefix: str) -> int:
    sizes = dict(line.split() for line in _read(stat).splitlines())
    return sum(int(sizes.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
