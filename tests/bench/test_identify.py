"""The three ways go through the same text: both that count get the same; the record says what it must."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lape_ds.bench import shapes
from lape_ds.bench.identify import WAYS, bench_identify, random_blocks, ways
from lape_ds.bench.shapes import build_model
from lape_ds.errors import UserError
from tests.bench.shapes import TINY


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_counting_equals_the_loop_with_hooks(dtype: torch.dtype) -> None:
    shape = replace(TINY, dtype=dtype)
    model = build_model(shape, torch.device("cpu"), 0).eval()
    turns = ways(model, random_blocks(shape, 5, seed=0), shape)
    counted, summed = turns["counting"](), turns["hooks"]()
    assert counted is not None
    assert summed is not None
    assert torch.equal(counted.long(), summed)
    assert 0.1 < float(summed.float().mean()) / (5 * shape.sequence_length) < 0.9
    assert not any(module._forward_hooks for module in model.modules())


def test_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    record = bench_identify("tiny", rounds=2, seed=0, out=tmp_path / "identify.json", num_ranks=2)
    assert json.loads((tmp_path / "identify.json").read_text()) == record
    assert list(record["dtypes"]) == ["float32", "bfloat16"]
    for found in record["dtypes"].values():
        assert list(found["methods"]) == list(WAYS)
        assert found["ratios"]["counting"]["floor"] > 0
        assert all(one["peak"] > 0 for one in found["methods"].values())
    for found in record["ranks"]["2"].values():
        assert found["ratios"]["counting"]["floor"] > 0
        assert found["methods"]["counting"]["tokens_per_second"] > 0
    table = (tmp_path / "identify.md").read_text()
    assert table.count("| counting |") == 4
    assert "Counting: tiny, bfloat16, 2 x 24 tokens" in table


def test_a_large_shape_needs_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="8b needs a GPU"):
        bench_identify("llama-3.1-8b", rounds=1, seed=0, out=tmp_path / "identify.json")
