"""The whole command on a tiny shape: what the record and its table hold. No time is asserted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lape_ds.bench import shapes, train
from lape_ds.bench.contenders import METHODS
from lape_ds.bench.train import bench_train
from lape_ds.errors import UserError
from tests.bench.shapes import TINY

BYTES = ("weights", "gradients", "optimizer_state", "saved_for_backward", "peak")


@pytest.fixture
def tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        shapes.SHAPES, "tiny", replace(TINY, config={**TINY.config, "intermediate_size": 200})
    )
    monkeypatch.setitem(shapes.SHAPES, "big", replace(shapes.SHAPES["tiny"], large=True, checkpointing=True))


def run(folder: Path, shape: str, *, methods: tuple[str, ...] = (), neurons: str = "uniform-1%") -> Any:
    out = folder / "train.json"
    record = bench_train(shape, neurons=neurons, methods=methods, rounds=3, seed=0, out=out)
    assert json.loads(out.read_text()) == json.loads(json.dumps(record))
    return record


@pytest.mark.usefixtures("tiny_shape")
def test_record_of_a_measurement(tmp_path: Path) -> None:
    record = run(tmp_path, "tiny")
    assert record["measured"] is True
    assert list(record["methods"]) == list(METHODS)
    assert list(METHODS) == "full ffn lora_ffn lora_all sparse clone masked compact floor".split()
    for name, found in record["methods"].items():
        assert found["fits"]
        assert all(found[key] > 0 for key in BYTES)
        assert found["peak"] > found["weights"] + found["optimizer_state"]
        assert found["seconds"]["lower"] <= found["seconds"]["median"] <= found["seconds"]["upper"]
        assert found["tokens_per_second"] == pytest.approx(48 / found["seconds"]["median"])
        assert found["loss_last"] < found["loss_first"], name  # it does train
        for other, ratio in record["ratios"][name].items():
            lower, upper = record["ratio_quartiles"][name][other]
            assert lower <= ratio <= upper
        assert set(record["ratios"][name]) == set(METHODS) - {name}
    assert record["settings"]["neurons_per_layer"] == [2, 2, 2]
    for key in ("date", "versions", "hardware", "command", "commit"):
        assert record[key]
    assert "host" not in record["hardware"]


@pytest.mark.usefixtures("tiny_shape")
def test_table_says_what_the_record_says(tmp_path: Path) -> None:
    record = run(tmp_path, "tiny", methods=("full", "floor"))
    table = (tmp_path / "train.md").read_text()
    heading, _, full, floor = [line for line in table.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in heading.strip("|").split("|")][:4] == [
        "method",
        "tokens/s",
        "× full",
        "× floor",
    ]
    ratio = record["ratios"]["floor"]["full"]
    lower, upper = record["ratio_quartiles"]["floor"]["full"]
    assert f"| {ratio:.2f} ({lower:.2f}–{upper:.2f}) | 1 |" in floor
    assert full.startswith("| full |")
    assert record["versions"]["torch"] in table
    assert record["date"][:10] in table


@pytest.mark.usefixtures("tiny_shape")
def test_without_a_gpu_a_large_shape_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    record = run(tmp_path, "big", neurons="mt")
    assert record["measured"] is False
    assert record["ratios"] == {}
    assert list(record["methods"]) == [name for name in METHODS if name != "sparse"]
    assert all("seconds" not in found for found in record["methods"].values())
    assert "PLAN, nothing was run" in (tmp_path / "train.md").read_text()


@pytest.mark.usefixtures("tiny_shape")
def test_what_does_not_fit_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = train.contender

    def contender(name: str, *args: Any, **settings: Any) -> Any:
        if name == "full":
            raise torch.OutOfMemoryError
        return real(name, *args, **settings)

    monkeypatch.setattr(train, "contender", contender)
    record = run(tmp_path, "tiny", methods=("full", "ffn", "floor"))
    assert record["methods"]["full"] == {"what": METHODS["full"], "fits": False}
    assert set(record["ratios"]) == {"ffn", "floor"}
    assert "| full | does not fit |" in (tmp_path / "train.md").read_text()


@pytest.mark.usefixtures("tiny_shape")
def test_moments_of_heavy_methods_live_in_their_turn_only() -> None:
    """As on a GPU, where the moments of `full` and `ffn` have no room beside each other."""
    shape = shapes.SHAPES["big"]
    made = {
        name: train._contender(name, shape, *model_and_neurons(shape)) for name in ("full", "ffn", "floor")
    }
    batch = shapes.random_batch(shape, torch.device("cpu"), 0)
    prepare = train._moments_in_turn(made, batch)
    states = []
    for name in ("full", "ffn", "floor"):
        prepare(name)
        states.append([bool(made[other].optimizer.state) for other in ("full", "ffn")])
    assert states == [[True, False], [False, True], [False, False]]


def model_and_neurons(shape: shapes.Shape) -> tuple[Any, torch.Tensor]:
    base = shapes.build_model(shape, torch.device("cpu"), 0)
    return base, torch.tensor([[0, 1], [2, 5]])


def test_unknown_method(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--methods lora: no such method; allowed: full, ffn, lora_ffn"):
        run(tmp_path, "cpu-100m", methods=("full", "lora"))
