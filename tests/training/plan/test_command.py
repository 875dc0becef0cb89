"""`lape-ds plan` as it is called: what it prints, writes and refuses; no GPU, no weights."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from lape_ds import cli
from lape_ds.errors import UserError
from lape_ds.recipe import load_recipe
from lape_ds.training.plan.candidates import Costing
from lape_ds.training.plan.cluster import RESERVED_BYTES, RESERVED_SHARE, Cluster, parse_cluster
from lape_ds.training.plan.command import make_plans
from lape_ds.training.plan.methods import METHODS, subject
from lape_ds.training.plan.report import Plan, markdown_file, show
from tests.tiny_models import tiny_model

SMALL_BUCKETS = "deepspeed.config={zero_optimization: {reduce_bucket_size: 100000}}"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["lape-ds", "plan", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


@pytest.fixture(scope="module")
def bare_recipe(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe on a folder that has the model's config.json and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "base").mkdir()
    shutil.copy(tiny_recipe.parent / "base" / "config.json", folder / "base")
    text = tiny_recipe.read_text(encoding="utf-8").replace(f"{tiny_recipe.parent}/base", f"{folder}/base")
    path = folder / "bare.yaml"
    path.write_text(text + "# the last line\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plan(bare_recipe: Path) -> Plan:
    (made,) = make_plans(
        subject(load_recipe(bare_recipe, [SMALL_BUCKETS])), [parse_cluster("2x3GB")], METHODS
    )
    return made


def test_apply_writes_the_best_and_keeps_the_global_batch(
    bare_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.yaml"
    shutil.copy(bare_recipe, mine)
    out = tmp_path / "plan.json"
    assert call(monkeypatch, str(mine), "--gpus", "2x8GB", "--json", str(out), "--apply") == 0
    printed = capsys.readouterr().out
    assert "+  num_ranks: 2" in printed or "num_ranks: 2" in printed
    best = json.loads(out.read_text())["plans"][0]["best"]["setting"]
    recipe = load_recipe(mine)
    train, engine = recipe.train, recipe.deepspeed
    assert (engine.zero_stage, train.micro_batch_size) == (best["zero_stage"], best["micro_batch_size"])
    assert (train.gradient_checkpointing, engine.offload_optimizer) == (
        best["checkpointing"],
        best["offload_optimizer"],
    )
    before = load_recipe(bare_recipe)
    assert recipe.launch.num_ranks == 2
    assert (
        train.micro_batch_size * train.gradient_accumulation_steps * 2
        == Costing(before, parse_cluster("2x8GB")).global_batch_size
    )
    assert mine.read_text(encoding="utf-8").endswith("# the last line\n")


def test_a_second_plan_for_several_nodes_keeps_the_global_batch(
    bare_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`launch.num_ranks`, which --apply writes, is of one node."""
    mine, cluster = tmp_path / "mine.yaml", parse_cluster("2x2x8GB")
    text = bare_recipe.read_text(encoding="utf-8")
    assert "num_ranks: 1" in text
    mine.write_text(text.replace("num_ranks: 1", "num_ranks: null"), encoding="utf-8")
    sizes = [Costing(load_recipe(mine), cluster).global_batch_size]
    for _ in range(2):
        assert call(monkeypatch, str(mine), "--gpus", "2x2x8GB", "--apply") == 0
        assert load_recipe(mine).launch.num_ranks == 2
        sizes.append(Costing(load_recipe(mine), cluster).global_batch_size)
    assert sizes == [16, 16, 16]


def test_only_what_trains_is_charged(plan: Plan) -> None:
    """Masters and moments of AdamW: 12 bytes for each weight that trains; dense masters for a mask."""
    model = tiny_sizes(plan)
    by_method = {one.method: one.gpu for one in plan.candidates if one.setting.zero_stage == 0}
    assert by_method["full"]["moments"] == 8 * model["all"]
    assert by_method["ffn"]["moments"] == 8 * model["ffn"]
    neurons = 3 * 32 * len(plan.subject.neurons)  # gate, up and down of hidden size 32
    assert by_method["subnetwork"]["moments"] == by_method["masked"]["moments"] == 8 * neurons


def tiny_sizes(plan: Plan) -> dict[str, int]:
    named = dict(plan.subject.skeleton.named_parameters())
    return {
        "all": sum(param.numel() for param in named.values()),
        "ffn": sum(param.numel() for name, param in named.items() if ".mlp." in name),
    }


def test_the_best_is_the_fastest_that_fits(plan: Plan) -> None:
    assert plan.best is not None
    assert plan.best.method == "subnetwork"
    rivals = [one for one in plan.candidates if one.method == "subnetwork" and one.fits]
    assert plan.best.tokens_per_second >= 0.98 * max(one.tokens_per_second for one in rivals)
    blocks = {one.setting.micro_batch_size * one.setting.accumulation for one in plan.candidates}
    assert blocks == {2}, "four blocks a step on two ranks"


def test_a_node_must_have_room_for_what_is_offloaded(bare_recipe: Path) -> None:
    """GPUs that only offload fits, with a node of memory unknown, and of hardly any."""
    found = subject(load_recipe(bare_recipe, [SMALL_BUCKETS]))
    (large,) = make_plans(found, [parse_cluster("2x8GB")], ["full"])
    least = min(one.peak for one in large.candidates if one.setting.offload == "–")
    tight = Cluster(1, 2, int((least - 2 + RESERVED_BYTES) / (1 - RESERVED_SHARE)))
    unknown, little = make_plans(found, [tight, replace(tight, host_memory=1000)], ["full"])
    assert unknown.ranked("full")
    assert unknown.ranked("full")[0].host > 1000
    assert little.ranked("full") == []
    text = markdown_file([little], command="", everything=True)
    assert "B of host memory with ZeRO 3" in text


@pytest.mark.parametrize("width", [80, 100, 140])
def test_no_line_is_cut(plan: Plan, width: int) -> None:
    console = Console(width=width, record=True, force_terminal=True, file=io.StringIO())
    show(plan, everything=False, console=console)
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for method in METHODS:
        assert f"\n{method} " in text


def test_markdown_says_that_nothing_was_run(plan: Plan) -> None:
    text = markdown_file([plan], command="lape-ds plan x", everything=False)
    assert text.count("PLAN, nothing was run") == 2
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({row.count("|") for row in rows}) == 1
    assert "estimates" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "there is no GPU here: say which ones to plan for, e.g. --gpus 8x40GB"),
        (["--gpus", "8"], "--gpus 8: write GPUs x memory, e.g. 8x40GB"),
        (["--gpus", "3x40GB"], "a step of 4 blocks cannot be shared by 3 ranks; plan for a divisor of 4"),
        (
            ["--gpus", "1x40GB", "--gpus", "2x40GB", "--apply"],
            "--apply writes the plan of one cluster; 2 are given",
        ),
        (
            ["--gpus", "1x1GB", "--apply"],
            "by the plan nothing fits for subnetwork on 1x1GB, nor for another method; take more or larger GPUs",
        ),
    ],
)
def test_mistakes_are_one_line(
    bare_recipe: Path,
    arguments: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = bare_recipe.read_text(encoding="utf-8")
    assert call(monkeypatch, str(bare_recipe), *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert bare_recipe.read_text(encoding="utf-8") == before


def test_neurons_are_the_sets_or_said_to_be_estimated(bare_recipe: Path) -> None:
    recipe = load_recipe(bare_recipe)
    assert len(subject(recipe).neurons) == 3, "tests/conftest.py gives Maltese three"
    without = load_recipe(bare_recipe, ["train.neurons=null"])
    guessed = subject(without)
    assert "estimated: there is no" in guessed.source
    assert len(guessed.neurons) == 3 * 1, "0.5 % of 47 is less than one: one in each of three layers"
    assert len(subject(recipe, neurons_share=0.1).neurons) == 3 * 5


def test_mixtures_of_experts_are_refused(bare_recipe: Path, tmp_path: Path) -> None:
    tiny_model("mixtral").config.save_pretrained(tmp_path)
    recipe = load_recipe(bare_recipe, [f"model.path={tmp_path}"])
    with pytest.raises(
        UserError, match="model type mixtral is a mixture of experts, which the plan does not know"
    ):
        subject(recipe)
