"""Checkpoints: the trained entries' masters and moments, by weight and entry, for every method.

Beside the loop, which writes them (saving.py); resume and export read them here. Nothing frozen is stored and nothing
depends on how ZeRO cut the weights: every rank writes the entry ranges that it owns, a reader asks for any range. So a
run resumes on another number of ranks or another ZeRO stage, and export needs neither DeepSpeed nor a process group.

    checkpoints/step-00000500/state.json              step, what trains, scalars of the optimizer, best so far
    checkpoints/step-00000500/rank-00000.safetensors  "master|<weight>|<start>", "exp_avg|<weight>|<start>", …
    checkpoints/last.json, checkpoints/best.json      {"folder": "step-00000500", …}

A folder appears whole or not at all: ranks write into a temporary one, which is renamed when all are done.
"""

from __future__ import annotations

import bisect
import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.writing import write_json

SCHEMA_VERSION = 1
LORA_R = "LoRA's r"  # in the identity of a run: export needs the number that `match` gave


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint says of itself, beside its tensors.

    Attributes:
        step: Optimizer steps taken.
        base_fingerprint: Of the model that was trained (model/loading.py).
        num_entries: Trained weights.
        identity: What else makes this run this run, by a name that a person understands (text, neurons, blocks per step).
        best: Lowest held-out bits per byte so far and its step; None before the first measurement.
    """

    step: int
    base_fingerprint: str
    num_entries: int
    identity: dict[str, str]
    best: dict[str, float] | None


class CheckpointReader:
    """Reads any range of entries from a checkpoint, whoever wrote it.

    Raises:
        UserError: The folder is not a whole checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        try:
            content: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{folder} is not a checkpoint: it has no state.json") from None
        self.folder = folder
        self.scalars = {key: torch.tensor(value) for key, value in content.pop("scalars").items()}
        if content.pop("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"{folder} was written by another version of lape-ds; finish the run with that version"
            )
        self.state = CheckpointState(**content)
        self._parts: dict[str, dict[str, list[tuple[int, Path]]]] = defaultdict(lambda: defaultdict(list))
        for path in sorted(folder.glob("rank-*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for tensor_name in file.keys():  # noqa: SIM118 (not a dict)
                    key, name, start = tensor_name.split("|")
                    self._parts[name][key].append((int(start), path))
        for by_key in self._parts.values():
            for parts in by_key.values():
                parts.sort()

    @property
    def names(self) -> list[str]:
        """The weights of which something was trained."""
        return list(self._parts)

    def read(self, name: str, start: int, stop: int) -> Mapping[str, Tensor]:
        """fp32 tensors [stop - start] of one weight's entries: "master" and the optimizer's state by name."""
        return {key: self.read_key(key, name, start, stop) for key in self._parts[name]}

    def read_key(self, key: str, name: str, start: int, stop: int) -> Tensor:
        """One of the tensors that `read` gives."""
        parts = self._parts[name][key]
        pieces: list[Tensor] = []
        position = start
        for part_start, path in parts[
            max(0, bisect.bisect_right(parts, start, key=lambda part: part[0]) - 1) :
        ]:
            if position >= stop:
                break
            with safe_open(path, framework="pt") as file:
                stored = file.get_slice(f"{key}|{name}|{part_start}")
                end = min(stop, part_start + stored.get_shape()[0])
                pieces.append(stored[position - part_start : end - part_start])
            position = end
        if position < stop:
            raise UserError(
                f"{self.folder} lacks entries {position}:{stop} of {name}; a rank's file is missing"
            )
        return torch.cat(pieces)


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after so many steps."""
    return f"step-{step:08d}"


def point_to(folder: Path, pointer: str, step: int, **facts: float) -> None:
    """Writes `folder/<pointer>.json` and removes the checkpoints that no pointer names. One rank only."""
    write_json(folder / f"{pointer}.json", {"folder": checkpoint_name(step), **facts})
    kept = {json.loads(path.read_text(encoding="utf-8"))["folder"] for path in folder.glob("*.json")}
    for old in [*folder.glob("step-*"), *folder.glob(".step-*.tmp")]:
        if old.name not in kept:
            shutil.rmtree(old)


def pointed_to(folder: Path, pointer: str) -> Path | None:
    """The checkpoint that `best` or `last` names, None where there is none yet."""
    path = folder / f"{pointer}.json"
    return folder / json.loads(path.read_text(encoding="utf-8"))["folder"] if path.exists() else None
