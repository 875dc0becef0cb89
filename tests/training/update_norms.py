"""What `train.log_update_norms` logs against the checkpoints of every step, put together whole in one process."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lape_ds.training.metrics import read_metrics

EVERY_CHECKPOINT = ["train.checkpoint_every_steps=1", "train.keep_checkpoints=10"]


def check_update_norms(run_dir: Path, base: Mapping[str, Tensor]) -> None:
    """Of every step of a run with `EVERY_CHECKPOINT`.

    Args:
        run_dir: Of a run that logged them.
        base: fp32 [n] by weight, its trained entries before the first step in row-major order; empty where they are not known:
            then the first step is not compared.
    """
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]
    masters = {
        number: _masters(run_dir / f"checkpoints/step-{number:08d}") for number in range(1, len(lines) + 1)
    }
    masters |= {0: dict(base)} if base else {}
    compared = 0
    for line in lines:
        after, before = masters[line["step"]], masters.get(line["step"] - 1)
        if before is None:
            continue
        assert after.keys() == before.keys()
        change = _norm({name: after[name].double() - before[name].double() for name in after})
        assert line["update_norm"] == pytest.approx(change, rel=1e-6)
        assert line["relative_update_norm"] == pytest.approx(change / _norm(before), rel=1e-6)
        compared += 1
    assert compared == len(lines) - (0 if base else 1)
    assert max(line["update_norm"] for line in lines) > 0


def _masters(checkpoint: Path) -> dict[str, Tensor]:
    """Of all ranks, by weight."""
    parts: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for path in checkpoint.glob("rank-*.safetensors"):
        for stored, values in load_file(path).items():
            if found := re.fullmatch(r"master\|(.*)\|(\d+)", stored):
                parts[found[1]][int(found[2])] = values.flatten()
    return {
        name: torch.cat([part for _, part in sorted(by_start.items())]) for name, by_start in parts.items()
    }


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.cat([tensor.double().flatten() for tensor in tensors.values()]).norm())
