"""What a run folder says of its run: of which recipe it is, whether it is finished, which checkpoints there are.

Beside the loop, which writes it. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lape_ds.recipe import TrainSection
from lape_ds.training.metrics import read_metrics

# What decides a run's numbers. Not how they are computed: a run may go on with other ranks, another ZeRO stage, another
# micro-batch of the same global batch.
_HOW = {
    "engine",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "torch_compile",
    "checkpoint_every_steps",
    "keep_checkpoints",
}
_HOW |= {"resume", "log_update_norms", "tensorboard", "wandb", "run_name"}  # the folder itself says its name
EXPORT_MARKER = (
    "lape_ds_export.json"  # in an exported model; by it a later export knows a folder that it may replace
)
RUN_SECTIONS = (
    "seed",
    "languages",
    "model",
    "corpus",
    *(f"train.{key}" for key in TrainSection.model_fields if key not in _HOW),
)


@dataclass(frozen=True)
class Finished:
    """A run that has come to its end.

    Attributes:
        before: Held-out bits per byte by language before the first step; empty where it diverged before that was measured.
        after: The same after the last step; empty where it diverged.
        diverged: Why it ended early; None after the last step.
        facts: What `run.json` says.
    """

    before: dict[str, float]
    after: dict[str, float]
    diverged: str | None
    facts: dict[str, Any]


def read_facts(run_dir: Path) -> dict[str, Any] | None:
    """A run's `run.json`; None before its training began."""
    path = run_dir / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after so many steps."""
    return f"step-{step:08d}"


def checkpoints_in(folder: Path) -> list[Path]:
    """All checkpoints of a run's `checkpoints`, newest first; none where the folder is not there."""
    return sorted(folder.glob("step-*"), reverse=True)


def heldout_by_step(lines: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Bits per byte by language, by the step after which they were measured, of the lines of a `metrics.jsonl`."""
    return {line["step"]: line["heldout_bits_per_byte"] for line in lines if "heldout_bits_per_byte" in line}


def read_finished(run_dir: Path) -> Finished | None:
    """How a run ended; None if it is not there, not finished, or measured nothing at its ends."""
    facts, metrics = read_facts(run_dir), run_dir / "metrics.jsonl"
    if facts is None or not metrics.exists():
        return None
    lines = read_metrics(metrics)
    by_step = heldout_by_step(lines)
    before, after = by_step.get(0, {}), by_step.get(facts["total_steps"], {})
    if lines and "diverged" in lines[-1]:
        return Finished(before, {}, lines[-1]["diverged"], facts)
    return Finished(before, after, None, facts) if before and after else None
