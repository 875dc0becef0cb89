"""The record of packs beside LoRA says what it must, and its sizes are those of real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lape_ds.bench import packs, shapes
from lape_ds.bench.packs import bench_pack
from lape_ds.bench.shapes import neurons_per_layer
from tests.bench.shapes import TINY


def test_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    monkeypatch.setattr(packs, "_sized", lambda name: [name])
    record = bench_pack("tiny", neurons="mt", rounds=2, seed=0, out=tmp_path / "packs.json")
    assert json.loads((tmp_path / "packs.json").read_text()) == record
    assert all(spread["median"] > 0 for spread in record["turns"].values())
    found = record["sizes"]["tiny"]
    assert found["neurons"] == sum(neurons_per_layer("tiny", "mt")) > 0
    # New and base of three vectors of 32 float32 a neuron and its index; LoRA's r 32 by in + out of three linears in 3 layers.
    data = found["neurons"] * (2 * 3 * 32 * 4 + 8)
    assert data < found["pack"] < data + 4096
    assert found["lora_weights"] == 32 * (32 + 48) * 3 * 3
    assert 4 * found["lora_weights"] < found["lora"] < 4 * found["lora_weights"] + 8192
    table = (tmp_path / "packs.md").read_text()
    assert "| swap pack |" in table
    assert "| tiny |" in table
