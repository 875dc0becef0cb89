"""`metrics.jsonl`: one line a step, one line a held-out measurement, whatever else is switched on.

Beside the loop.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lape_ds.writing import sync, told_if_unwritable, write_text

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class Metrics:
    """Appends lines to `metrics.jsonl`, and to TensorBoard or W&B through DeepSpeed's monitor.

    Args:
        path: The file; None on every rank but the first.
        engine: Whose monitor also gets the numbers.
        resumed_step: Lines of later steps, written before an interruption, are dropped: no step stands twice. -1 where the
            run begins.

    Attributes:
        failure: Why a line could not be written; the loop stops all ranks for it, as the first one alone must not.
    """

    def __init__(self, path: Path | None, engine: DeepSpeedEngine, *, resumed_step: int) -> None:
        self._path = path
        self.failure: OSError | None = None
        self._monitor = engine.monitor
        if path is not None:
            _keep_until(path, resumed_step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Writes one line; `values` are numbers, dictionaries of numbers, or words, which the monitor does not get."""
        if self._path is None or self.failure is not None:  # nothing behind half a line
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        except OSError as error:
            self.failure = error
            return
        if self._monitor.enabled:
            self._monitor.write_events([(f"lape_ds/{key}", value, step) for key, value in _flat(values)])

    def has_measured(self, step: int) -> bool:
        """Whether held-out text was measured after a step; on the first rank."""
        lines = read_metrics(self._path) if self._path is not None and self._path.exists() else []
        return any(line["step"] == step and "heldout_bits_per_byte" in line for line in lines)

    def sync(self) -> None:
        """Waits until all lines are on the disk: a checkpoint must not outlive the lines that lead to it.

        Raises:
            UserError: They are not, or a line could not be written.
        """
        if self._path is None:
            return
        with told_if_unwritable(str(self._path)):
            if self.failure is not None:
                raise self.failure
            sync(self._path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a `metrics.jsonl`."""
    return [
        json.loads(line)
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.endswith("\n")
    ]


def _keep_until(path: Path, step: int) -> None:
    """Also drops that the run had diverged: it goes on."""
    lines = read_metrics(path) if path.exists() else []
    kept = [line for line in lines if line["step"] <= step and "diverged" not in line]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{key}/")
        elif not isinstance(value, str):
            pairs.append((prefix + key, value))
    return pairs
