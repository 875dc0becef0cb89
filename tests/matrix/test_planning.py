"""What a matrix would cost: the plan of each method, in the setting in which the matrix would run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lape_ds.matrix.planning import plan_matrix
from lape_ds.recipe import load_matrix
from lape_ds.training.plan.cluster import parse_cluster
from lape_ds.training.plan.command import make_plans
from lape_ds.training.plan.methods import subject

MATRIX = """
name: by-hand
output_dir: {folder}/out
recipes: ["{recipe}"]
languages: [mt, ka]
set: {{train.max_steps: 10, train.heldout.languages: [], train.replay.languages: [en]}}
sweep:
  num_ranks: 1
  seeds: [0]
  variants:
    - {{method: subnetwork, learning_rates: [1e-4, 1e-3]}}
    - {{method: full, learning_rates: [1e-4], set: {{deepspeed.zero_stage: 2, deepspeed.offload_optimizer: cpu}}}}
"""


def test_each_method_is_priced_as_the_matrix_runs_it(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "matrix.yaml"
    path.write_text(MATRIX.format(folder=tmp_path, recipe=tiny_recipe), encoding="utf-8")
    matrix = load_matrix(path)
    matrix.write_recipes()
    plan_matrix(matrix, gpus="1x3GB", json_file=tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    subnetwork, full = content["costs"]
    assert (subnetwork["num_runs"], full["num_runs"]) == (4, 2)  # rates x languages
    assert full["setting"] == "ZeRO 2, optimizer on the host"
    assert "full" in capsys.readouterr().out

    run = matrix.languages[0].runs_of("full")[0]
    (plan,) = make_plans(subject(run.recipe), [parse_cluster("1x3GB")], ["full"])
    (own,) = [
        one
        for one in plan.candidates
        if (one.setting.zero_stage, one.setting.offload) == (2, "optimizer")
        and one.setting.micro_batch_size == run.recipe.train.micro_batch_size
        and one.setting.checkpointing == run.recipe.train.gradient_checkpointing
    ]
    assert full["hours"] == pytest.approx(plan.tokens / own.tokens_per_second / 3600)  # type: ignore[operator]
    runs = [(subnetwork["num_runs"], subnetwork["hours"]), (full["num_runs"], full["hours"])]
    assert content["hours"] == pytest.approx(sum(number * hours for number, hours in runs))
