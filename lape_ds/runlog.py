"""What a run tells of itself: progress while it goes, `run.json` beside its output.

Beside every room: each stage reports through it.
"""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar, overload

from lape_ds.recipe import Recipe, to_yaml
from lape_ds.writing import write_json

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0  # in a log
_PACKAGES = (
    "lape-ds",
    "torch",
    "transformers",
    "deepspeed",
    "datasets",
    "lm-eval",
    "peft",
    "safetensors",
    "babel",
)


class Progress:
    """A bar with time left on a terminal, a plain line every ten seconds in a log.

    Example:
        with Progress("Packing mlt_Latn", total=num_tokens, unit="tokens") as bar:
            for document in documents:
                bar.advance(len(document), note="kept 93 %")
    """

    def __init__(
        self,
        description: str,
        *,
        total: float | None = None,
        unit: str = "",
        done: float = 0,
        enabled: bool | None = None,
        stream: TextIO | None = None,
    ) -> None:
        """Starts the clock at entry of the `with` block.

        Args:
            description: What is going on.
            total: How much there is; None where nobody knows.
            unit: Of `total` and of the rate shown, e.g. `tokens`.
            done: What an earlier, interrupted run had done; does not count for the rate.
            enabled: None: on the first rank only.
            stream: None: stderr.
        """
        self.description, self.total, self.unit = description, total, unit
        self.done = self._done_before = done
        self._enabled = os.environ.get("RANK", "0") == "0" if enabled is None else enabled
        self._stream = sys.stderr if stream is None else stream
        self._note = ""
        self._line_is_out = False  # the last line printed says how far it is now

    def __enter__(self) -> Self:
        self._started = self._last_line = time.monotonic()
        self._bar = self._rich_bar() if self._enabled and self._stream.isatty() else None
        return self

    def _rich_bar(self) -> Any:
        from rich import progress as rich_progress
        from rich.console import Console

        bar = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.TaskProgressColumn(),
            rich_progress.TextColumn("{task.fields[rate]}"),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[note]}"),
            console=Console(file=self._stream),
        )
        self._task = bar.add_task(
            self.description, total=self.total, completed=int(self.done), rate="", note=""
        )
        bar.start()
        return bar

    def advance(self, amount: float = 1, *, note: str = "") -> None:
        """Counts `amount` as done; `note` stands behind the figures."""
        self.done += amount
        self._line_is_out = False
        self._note = note or self._note
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, rate=self._rate_text(), note=self._note)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self._print_line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._enabled and kind is None and not self._line_is_out:
            self._print_line()

    def _rate(self) -> float:
        elapsed = time.monotonic() - self._started
        return (self.done - self._done_before) / elapsed if elapsed > 0 else 0.0

    def _rate_text(self) -> str:
        return f"{self._rate():,.4g} {self.unit}/s" if self.unit else ""

    def _print_line(self) -> None:
        self._line_is_out = True
        whole = math.floor(self.done + 1e-6)  # half a run is none yet
        parts = [f"{whole:,}" + (f"/{self.total:,.0f}" if self.total else "") + f" {self.unit}".rstrip()]
        if self.total:
            parts[0] += f" ({100 * self.done / self.total:.0f} %)"
        parts += [self._rate_text()] if self.unit else []
        rate = self._rate()
        if self.total and self.done < self.total and rate > 0:
            parts.append(f"{readable_duration((self.total - self.done) / rate)} left")
        else:
            parts.append(f"{readable_duration(time.monotonic() - self._started)} taken")
        parts += [self._note] if self._note else []
        print(f"{self.description}: {', '.join(parts)}", file=self._stream, flush=True)


def readable_duration(seconds: float) -> str:
    """As `H:MM:SS`."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


@overload
def progress(items: int, description: str, *, unit: str = "") -> Iterator[int]: ...
@overload
def progress(items: Iterable[Item], description: str, *, unit: str = "") -> Iterator[Item]: ...
def progress(items: int | Iterable[Any], description: str, *, unit: str = "") -> Iterator[Any]:
    """Goes through `items` (or `range(items)`) and shows how far it is."""
    sequence: Iterable[Any] = range(items) if isinstance(items, int) else items
    total = len(sequence) if isinstance(sequence, Sized) else None
    with Progress(description, total=total, unit=unit) as bar:
        for item in sequence:
            yield item
            bar.advance()


def write_run_json(folder: Path, recipe: Recipe, extra: Mapping[str, Any]) -> None:
    """Writes `folder/run.json`: the resolved recipe and what else decided the numbers.

    Args:
        folder: The run folder.
        recipe: As resolved.
        extra: What the stage adds, JSON-ready, e.g. `{"stage": "train", "world_size": 2}`.
    """
    content = {
        "schema_version": 1,
        "command": sys.argv,
        **surroundings(),
        "seeds": {"seed": recipe.seed, "random_seed": recipe.train.random_seed},
        **extra,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_yaml": to_yaml(recipe),
    }
    write_json(folder / "run.json", content)


def surroundings() -> dict[str, Any]:
    """When, with which code and on which machine: `date`, `commit`, `versions`, `hardware`, JSON-ready."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "hardware": _hardware(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None


def _commit() -> str | None:
    """The checkout's commit, `-dirty` with local changes; None in a wheel or before the first commit."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() or None


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
    }


def _cpu_model() -> str:
    """As Linux names it; elsewhere what Python knows, which may be no more than the architecture."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def readable_bytes(number: float) -> str:
    """Bytes in three digits, e.g. `1.23 GB` (10^9 bytes)."""
    return f"{_scaled(number)}B"


def readable_count(number: float) -> str:
    """A number in three digits, e.g. `56.6 M`."""
    return _scaled(number).strip()


def _scaled(number: float) -> str:
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} T"
