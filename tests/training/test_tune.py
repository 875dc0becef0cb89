"""Candidates through the real launcher: the same losses, the fastest kept, and one without memory as a result."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lape_ds.errors import UserError
from lape_ds.recipe import load_recipe
from lape_ds.training.plan.candidates import Setting
from lape_ds.training.tune import (
    Trial,
    best_candidates,
    fastest_of,
    largest_difference,
    run_trials,
    scratch_folder,
    tune_command,
)

STEPS = 2


@pytest.fixture
def mine(tiny_recipe: Path, tmp_path: Path) -> Path:
    """The tiny recipe, to be written to, with small buckets; text and neurons are the tiny one's."""
    path = tmp_path / "mine.yaml"
    text = tiny_recipe.read_text(encoding="utf-8").replace("{zero_stage: 2}", "{zero_stage: 2} # was mine")
    path.write_text(text.replace("num_ranks: 1", "num_ranks: 2"), encoding="utf-8")
    return path


def test_the_fastest_is_measured_and_kept(
    mine: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = ["deepspeed.config={zero_optimization: {reduce_bucket_size: 100000}}"]
    recipe = load_recipe(mine, overrides)
    shutil.rmtree(recipe.run_dir, ignore_errors=True)
    out = tmp_path / "tune.json"
    tune_command(recipe, str(mine), overrides, candidates=2, steps=STEPS, apply=True, json_file=out)
    record = json.loads(out.read_text())
    trials = record["trials"]
    assert len(trials) == 2
    assert all(trial["failure"] is None and len(trial["seconds_per_step"]) == STEPS for trial in trials)
    assert all(len(trial["losses"]) == STEPS + 2 for trial in trials), "two steps of warm-up"
    assert record["largest_loss_difference"] < 1e-4
    fastest = max(trials, key=lambda trial: trial["tokens_per_second"])
    now = load_recipe(mine)
    assert now.deepspeed.zero_stage == fastest["setting"]["zero_stage"]
    assert (
        now.train.micro_batch_size * now.train.gradient_accumulation_steps * 2
        == recipe.train.micro_batch_size * recipe.train.gradient_accumulation_steps * 2
    )
    assert "# was mine" in mine.read_text(encoding="utf-8")
    assert not recipe.run_dir.exists(), "the recipe's own run is not begun"
    assert not list(scratch_folder(recipe).rglob("*.safetensors")), "no checkpoint is left behind"
    told = capfd.readouterr().out
    assert "losses of the same step are at most" in told
    assert f"\nfastest: train.micro_batch_size={now.train.micro_batch_size} " in told
    assert f" launch.num_ranks=2: {fastest['tokens_per_second']:,.0f} tokens/s\n" in told


@pytest.mark.long
def test_a_candidate_without_memory_is_a_result(mine: Path) -> None:
    """A bucket of 40 TB, which stage 2 makes on both ranks in its first backward, and stage 0 never.

    Refused by the check at the start of a training, and found where that is told to warn.
    """
    overrides = ["deepspeed.config={zero_optimization: {reduce_bucket_size: 10000000000000}}"]
    recipe = load_recipe(mine, overrides)
    fitting = next(one for one in best_candidates(recipe, 10) if one.setting.zero_stage == 0)
    too_big = replace(fitting, setting=replace(fitting.setting, zero_stage=2))
    refused, ran = run_trials(recipe, str(mine), overrides, [too_big, fitting], steps=STEPS)
    (failed,) = run_trials(
        recipe, str(mine), [*overrides, "launch.check_memory=warn"], [too_big], steps=STEPS
    )
    assert refused.failure is not None
    assert refused.failure.startswith("not begun: ")
    assert "by the plan this setting takes" in refused.failure
    assert failed.failure is not None
    assert failed.failure.startswith("out of memory: ")
    assert "40000000000000 bytes" in failed.failure
    assert failed.tokens_per_second is None
    assert ran.failure is None, "and the next one is run"
    assert fastest_of([refused, failed, ran]) is ran


def test_a_job_of_several_nodes_is_refused(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    with pytest.raises(UserError, match="measures on one machine, and this Slurm job has 2 nodes"):
        tune_command(load_recipe(mine), str(mine), [], candidates=1, steps=1, apply=False, json_file=None)


def test_other_losses_are_seen() -> None:
    setting = Setting(2, "none", "none", 1, 1, "none", 1)
    ran = Trial(setting, 0, tokens_per_second=1.0, seconds_per_step=[], losses=[2.0, 1.0], failure=None)
    failed = replace(ran, losses=[], failure="out of memory: …", tokens_per_second=None)
    assert largest_difference([ran, replace(ran, losses=[2.0, 0.9]), failed]) == pytest.approx(0.1)
    assert largest_difference([ran, ran]) == 0
