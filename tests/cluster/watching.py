"""Looks at a training from outside: its steps, and its ranks wherever they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from lape_ds.training.export import export_model
from lape_ds.training.metrics import read_metrics


def wait_until(there: Callable[[], bool], what: str, *, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"after {seconds} s: no {what}"
        time.sleep(0.02)


def steps_taken(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return max((line["step"] for line in read_metrics(path)), default=0) if path.exists() else 0


def steps_logged(run_dir: Path) -> list[int]:
    """The steps of the lines that tell a loss."""
    return [line["step"] for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]


def ranks_of(run_name: str) -> dict[int, Mapping[str, str]]:
    """The processes that train a run, by number, with their environments."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "lape_ds.training.main" in words and f"train.run_name={run_name}" in words:
            try:
                found[process.pid] = process.environ()
            except psutil.NoSuchProcess:
                continue
    return found


def same_weights(run_dir: Path, other: Path) -> bool:
    """Whether the last weights of two runs are bit-equal."""
    folders = [export_model(each, checkpoint="last").folder for each in (run_dir, other)]
    first, second = (
        {k: v for p in sorted(f.glob("*.safetensors")) for k, v in load_file(p).items()} for f in folders
    )
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
