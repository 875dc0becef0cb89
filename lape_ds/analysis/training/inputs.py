"""What an analysis read of a run, and in which state it was: later it can be told what has become of it since.

Below results.py, which keeps it beside the numbers; the report asks the same of the files as they are by then. Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from lape_ds.training.run_folder import EXPORT_MARKER
from lape_ds.writing import file_sha256

METRICS, EXPORT, PACK = "metrics.jsonl", "model", "pack.safetensors"  # in a run's folder


@dataclass(frozen=True)
class Input:
    """A file or folder that was read.

    Attributes:
        path: Relative to the run where it lies in it.
        step: The optimizer step that it is of; None of what does not come from the run's training, or does not say.
        digest: Of an exported model its checkpoint's (None of an export by an earlier version), of the base its fingerprint, of
            `metrics.jsonl` of the lines that were read, of other files of their bytes.
    """

    path: str
    step: int | None
    digest: str | None

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Of what `as_json` gave."""
        return cls(**content)


def metrics_input(lines: Sequence[Mapping[str, Any]]) -> Input:
    """The course of a training, as far as it had come.

    Args:
        lines: All whole lines of `metrics.jsonl`.
    """
    step = max((line["step"] for line in lines if "loss" in line), default=None)
    return Input(METRICS, step, hashlib.sha256(json.dumps(lines).encode()).hexdigest())


def export_input(folder: Path, run_dir: Path) -> Input:
    """An exported model, by what the export wrote of itself."""
    marker = json.loads((folder / EXPORT_MARKER).read_text(encoding="utf-8"))
    return Input(input_name(folder, run_dir), marker["step"], marker.get("checkpoint"))


def file_input(path: Path, run_dir: Path, *, step: int | None = None) -> Input:
    """A file of its own: a neuron set, or a language pack of a step."""
    return Input(input_name(path, run_dir), step, file_sha256(path))


def input_name(path: Path, run_dir: Path) -> str:
    """How a result names a file that was read: relative to the run where it lies in it."""
    path, run_dir = path.absolute(), run_dir.absolute()
    return str(path.relative_to(run_dir)) if path.is_relative_to(run_dir) else str(path)
