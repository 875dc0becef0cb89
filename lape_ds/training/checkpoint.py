"""Checkpoints: the trained entries' masters and moments, by weight and entry, for every method.

Beside the loop, which writes them (saving.py); resume and export read them here. Nothing frozen is stored and nothing
depends on how ZeRO cut the weights: every rank writes the entry ranges that it owns, a reader asks for any range. So a
run resumes on another number of ranks or another ZeRO stage, and export needs neither DeepSpeed nor a process group.

    checkpoints/step-00000500/state.json              step, what trains, scalars of the optimizer, best so far, checksums
    checkpoints/step-00000500/rank-00000.safetensors  "master|<weight>|<start>", "exp_avg|<weight>|<start>", …

A folder appears whole or not at all: ranks write into a temporary one, which is renamed when all of it is on the disk.
So the newest folder is where a run goes on, and its state names the best one: there is no pointer to go astray.

The place in the text and the random state are not stored, because both are functions of the step: sample s of a step of
B blocks is number step x B + s of one global order (corpora/loader.py), and every step seeds its own draws (loop.py).
"""

from __future__ import annotations

import bisect
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.training.checksums import SEAL, damaged_bytes, damaged_size, seal_holds, unsealed
from lape_ds.training.run_folder import checkpoint_name, checkpoints_in

SCHEMA_VERSION = 2  # 2: checksums
LORA_R = "LoRA's r"  # in the identity of a run: export needs the number that `match` gave


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint says of itself, beside its tensors.

    Attributes:
        step: Optimizer steps taken.
        base_fingerprint: Of the model that was trained (model/loading.py).
        num_entries: Trained weights.
        identity: What else makes this run this run, by a name that a person understands (text, neurons, blocks per step).
        best: Lowest held-out bits per byte so far and its step; None where nothing has been measured.
    """

    step: int
    base_fingerprint: str
    num_entries: int
    identity: dict[str, str]
    best: dict[str, float] | None


class DamagedCheckpoint(UserError):
    """A checkpoint is not what was written; says which and why."""


class CheckpointReader:
    """Reads any range of entries from a checkpoint, whoever wrote it.

    Opening it checks its state and the sizes of its files; `verify` reads them.

    Raises:
        DamagedCheckpoint: The folder is not a whole checkpoint.
        UserError: It is one of another version.
    """

    def __init__(self, folder: Path) -> None:
        content = read_state(folder)
        self.folder = folder
        self.scalars = {key: torch.tensor(value) for key, value in content.pop("scalars").items()}
        self._seals: dict[str, dict[str, Any]] = content.pop("files")
        self.state = CheckpointState(**content)
        self._parts: dict[str, dict[str, list[tuple[int, Path]]]] = defaultdict(lambda: defaultdict(list))
        for name, seal in sorted(self._seals.items()):
            self._refuse(damaged_size(folder / name, seal))
            self._index(folder / name)
        for by_key in self._parts.values():
            for parts in by_key.values():
                parts.sort()

    def _index(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                for tensor_name in file.keys():  # noqa: SIM118 (not a dict)
                    key, name, start = tensor_name.split("|")
                    self._parts[name][key].append((int(start), path))
        except (SafetensorError, ValueError) as error:  # ValueError: a name that is no longer one of ours
            raise DamagedCheckpoint(f"{self.folder} is damaged: {path.name}: {error}") from error

    def verify(self, part: int = 0, num_parts: int = 1) -> None:
        """Compares every `num_parts`-th file, from number `part` on, with its checksum.

        Raises:
            DamagedCheckpoint: One differs.
        """
        for name in sorted(self._seals)[part::num_parts]:
            self._refuse(damaged_bytes(self.folder / name, self._seals[name]))

    def _refuse(self, reason: str | None) -> None:
        if reason is not None:
            raise DamagedCheckpoint(f"{self.folder} is damaged: {reason}")

    @property
    def digest(self) -> str:
        """Of its state, in which the checksums of all its files stand: no other checkpoint has it."""
        return json.loads((self.folder / "state.json").read_text(encoding="utf-8"))[SEAL]

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


def read_state(folder: Path) -> dict[str, Any]:
    """What `state.json` holds, checked against its own digest.

    Raises:
        DamagedCheckpoint: It is missing or not what was written.
        UserError: It is of another version.
    """
    try:
        content = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{folder} is damaged: state.json is missing") from None
    except ValueError:  # also what is no longer UTF-8
        content = None
    first_version = isinstance(content, dict) and content.get("schema_version") == 1  # had no checksums
    if not isinstance(content, dict) or not (first_version or seal_holds(content)):
        raise DamagedCheckpoint(f"{folder} is damaged: state.json is not what was written")
    content = unsealed(content)
    if content.pop("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{folder} was written by another version of lape-ds; finish the run with that version"
        )
    return content


def first_whole(
    folders: Sequence[Path], attempt: Callable[[Path], CheckpointReader]
) -> tuple[CheckpointReader | None, list[DamagedCheckpoint]]:
    """The first checkpoint that is whole, and what is wrong with those before it; None where there are none at all.

    Args:
        folders: Of checkpoints, newest first.
        attempt: Opens and verifies one.

    Raises:
        UserError: There are some, and all are damaged.
    """
    damaged: list[DamagedCheckpoint] = []
    for folder in folders:
        try:
            return attempt(folder), damaged
        except DamagedCheckpoint as error:
            damaged.append(error)
    if damaged:
        raise UserError(
            f"no checkpoint is whole: {'; '.join(map(str, damaged))}; restore one from a backup, or begin anew with "
            "train.resume=never, which discards the run"
        )
    return None, []


def open_checkpoint(folder: Path, which: Literal["best", "last"]) -> CheckpointReader | None:
    """A verified checkpoint of a run; None where there is none yet. Warnings of damaged ones go to stderr.

    Args:
        folder: The run's `checkpoints`.
        which: `last`: the newest that is whole; `best`: the one that its state calls so, itself where nothing was measured.

    Raises:
        UserError: What there is is damaged.
    """
    last, damaged = first_whole(checkpoints_in(folder), _open_whole)
    warn_of(damaged)
    best = None if last is None else last.state.best
    if (
        which == "last" or best is None
    ):  # no measurement says which is better: `train.heldout.every_steps: null`
        return last
    if best["step"] == 0:  # nothing was better than the base
        return None
    return _open_whole(folder / checkpoint_name(int(best["step"])))


def _open_whole(folder: Path) -> CheckpointReader:
    reader = CheckpointReader(folder)
    reader.verify()
    return reader


def warn_of(damaged: Sequence[DamagedCheckpoint]) -> None:
    """Tells of each, on one line."""
    for error in damaged:
        print(f"warning: {error}; the checkpoint before it is used", file=sys.stderr, flush=True)
