"""Training end to end with real ranks: any layout gives the same run, an interrupted run goes on, export is exact."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lape_ds.distributed.stopping import STOPPED
from lape_ds.errors import UserError
from lape_ds.recipe import load_recipe
from lape_ds.training.export import export_model
from lape_ds.training.metrics import read_metrics
from lape_ds.training.outcome import read_outcome
from tests.conftest import NEURONS
from tests.oracles.subnetwork import entry_positions
from tests.processes import REPO, ends_of_ranks, free_port, rank_environment, rank_server, run_ranks
from tests.training.update_norms import EVERY_CHECKPOINT, check_update_norms


def run(recipe: Path, name: str, *overrides: str, world_size: int = 1) -> Path:
    """Trains and returns the run folder."""
    arguments = [str(recipe), f"train.run_name={name}", *overrides]
    run_ranks("lape_ds.training.main", arguments, world_size=world_size)
    return load_recipe(str(recipe), arguments[1:]).run_dir


def steps_of(run_dir: Path, key: str = "loss") -> list[Any]:
    return [line[key] for line in read_metrics(run_dir / "metrics.jsonl") if key in line]


@pytest.fixture(scope="session")
def reference(tiny_recipe: Path) -> Path:
    """One rank, ZeRO-2, four blocks a step."""
    return run(tiny_recipe, "reference")


def test_metrics_tell_every_step(reference: Path) -> None:
    lines = read_metrics(reference / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    measured = {line["step"]: line["heldout_bits_per_byte"] for line in lines if "loss" not in line}
    assert list(measured) == [0, 3, 6]
    assert measured[0].keys() == {"mlt_Latn", "eng_Latn"}
    assert measured[6]["mlt_Latn"] < measured[0]["mlt_Latn"]
    # 6 steps, 2 of warm-up to 0.01, then half a cosine to 0: (1 + cos(pi * k / 3)) / 2
    cosine = [0.01 * (1 + math.cos(math.pi * k / 3)) / 2 for k in range(4)]
    assert steps_of(reference, "learning_rate") == pytest.approx([0.01 / 3, 0.02 / 3, *cosine], abs=1e-12)


def test_same_seed_same_numbers(tiny_recipe: Path, reference: Path) -> None:
    again = run(tiny_recipe, "again", "train.tensorboard=true")
    assert list(again.rglob("events.out.tfevents.*")), "TensorBoard's file is written beside metrics.jsonl"
    assert steps_of(again) == steps_of(reference)
    assert steps_of(again, "gradient_norm") == steps_of(reference, "gradient_norm")
    assert steps_of(again, "heldout_bits_per_byte") == steps_of(reference, "heldout_bits_per_byte")


@pytest.mark.parametrize(
    ("name", "world_size", "overrides"),
    [
        ("two-ranks-zero3", 2, ["deepspeed.zero_stage=3", "train.gradient_accumulation_steps=1"]),
        *(
            (
                f"two-ranks-zero3-on-the-host-{engine}",
                2,
                [
                    "deepspeed.zero_stage=3",
                    "deepspeed.offload_parameters=cpu",
                    "train.gradient_accumulation_steps=1",
                    f"train.engine={engine}",
                ],
            )
            for engine in ("compact", "masked")
        ),
        ("two-ranks-zero1", 2, ["deepspeed.zero_stage=1", "train.gradient_accumulation_steps=1"]),
        (
            "zero0-other-micro",
            1,
            ["deepspeed.zero_stage=0", "train.micro_batch_size=4", "train.gradient_accumulation_steps=1"],
        ),
        ("recomputed-offload", 1, ["train.gradient_checkpointing=true", "deepspeed.offload_optimizer=cpu"]),
    ],
)
def test_any_layout_gives_the_same_run(
    tiny_recipe: Path, reference: Path, name: str, world_size: int, overrides: list[str]
) -> None:
    run_dir = run(tiny_recipe, name, *overrides, world_size=world_size)
    for key in ("loss", "gradient_norm", "update_norm", "relative_update_norm"):
        assert steps_of(run_dir, key) == pytest.approx(steps_of(reference, key), rel=1e-5)
    assert steps_of(run_dir, "tokens") == steps_of(reference, "tokens")
    assert steps_of(run_dir, "heldout_bits_per_byte")[-1] == pytest.approx(
        steps_of(reference, "heldout_bits_per_byte")[-1], rel=1e-5
    )


def test_stopped_run_goes_on_elsewhere(tiny_recipe: Path, reference: Path) -> None:
    """SIGTERM in the middle on one rank under ZeRO-2; the rest on two ranks under ZeRO-3."""
    arguments = [str(tiny_recipe), "train.run_name=stopped", "train.gradient_accumulation_steps=2"]
    run_dir = load_recipe(str(tiny_recipe), arguments[1:]).run_dir
    log = run_dir.parent / "stopped.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    alone = rank_environment(0, 1, free_port())
    rank = rank_server().start("lape_ds.training.main", arguments, environment=alone, log=log)
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").exists() or not steps_of(run_dir):
        assert rank.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)
    rank.send_signal(signal.SIGTERM)
    assert rank.wait(60) == STOPPED, log.read_text()
    assert 0 < len(steps_of(run_dir)) < 6, "the run was not stopped in the middle"

    run_ranks(
        "lape_ds.training.main",
        [*arguments, "deepspeed.zero_stage=3", "train.micro_batch_size=1"],
        world_size=2,
    )
    lines = [line for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert steps_of(run_dir) == pytest.approx(steps_of(reference), rel=1e-5)
    resumed, undisturbed = (
        load_file(export_model(d, checkpoint="last").folder / "model.safetensors")
        for d in (run_dir, reference)
    )
    for name, weight in resumed.items():
        torch.testing.assert_close(weight, undisturbed[name], rtol=1e-4, atol=1e-6)


def test_export_is_the_base_but_for_the_subnetwork(tiny_recipe: Path, reference: Path) -> None:
    done = export_model(reference, checkpoint="last")
    told = json.loads((done.folder / "lape_ds_export.json").read_text(encoding="utf-8"))
    last = reference / f"checkpoints/step-{told['step']:08d}/state.json"
    assert (
        told["checkpoint"] == json.loads(last.read_text(encoding="utf-8"))["xxh3_128"]
    )  # which one it is of
    base = AutoModelForCausalLM.from_pretrained(tiny_recipe.parent / "base")
    model = AutoModelForCausalLM.from_pretrained(done.folder)
    positions = entry_positions(base, NEURONS["mlt_Latn"])
    changed = 0
    for (name, weight), (_, before) in zip(model.named_parameters(), base.named_parameters(), strict=True):
        differs = {tuple(pair) for pair in (weight != before).nonzero().tolist()}
        assert differs <= set(positions.get(name, [])), name
        changed += len(differs)
    assert done.changed == changed
    assert f"; {done.trained:,} weights were trained and {changed:,} changed, of {done.total:,}; " in str(
        done
    )
    assert changed > 0.99 * done.trained  # an entry may happen to round to where it was
    assert (
        done.trained == sum(len(pairs) for pairs in positions.values()) == 3 * 3 * 32
    )  # neurons x projections x hidden
    outcome = read_outcome(reference)
    assert outcome.num_neurons == 3
    assert outcome.after["mlt_Latn"] < outcome.before["mlt_Latn"]


def test_finished_run_is_left_alone(tiny_recipe: Path, reference: Path) -> None:
    before = (reference / "metrics.jsonl").read_bytes()
    run(tiny_recipe, "reference")
    assert (reference / "metrics.jsonl").read_bytes() == before


def test_killed_before_its_last_measurement(tiny_recipe: Path, reference: Path) -> None:
    """The last checkpoint is there before the line by which the run is finished, which then is all that is missing."""
    metrics = reference / "metrics.jsonl"
    *lines, last = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    assert "heldout_bits_per_byte" in last
    metrics.write_text("".join(lines), encoding="utf-8")
    run(tiny_recipe, "reference")
    found = read_metrics(metrics)
    assert len(found) == len(lines) + 1
    assert found[-1]["heldout_bits_per_byte"] == json.loads(last)["heldout_bits_per_byte"]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_full_training_exports(tiny_recipe: Path, stage: int) -> None:
    name = f"full{stage}"
    settings = ["train.method=full", f"deepspeed.zero_stage={stage}", *EVERY_CHECKPOINT]
    whole = run(tiny_recipe, name, *settings)
    base = load_file(tiny_recipe.parent / "base" / "model.safetensors")
    check_update_norms(whole, {name: weight.flatten() for name, weight in base.items()})
    assert steps_of(whole)[-1] < steps_of(whole)[0]
    done = export_model(whole, checkpoint="last")
    assert done.changed > 0.9 * done.total


def test_random_subnetwork_has_the_same_size(tiny_recipe: Path, reference: Path) -> None:
    run_dir = run(tiny_recipe, "random", "train.method=random")
    exported = [export_model(d, checkpoint="last") for d in (run_dir, reference)]
    assert exported[0].trained == exported[1].trained
    assert steps_of(run_dir) != steps_of(reference)


def test_literal_deepspeed_command(tiny_recipe: Path) -> None:
    """`deepspeed launch/train.sh RECIPE`, as users type it."""
    launcher = Path(sys.executable).with_name("deepspeed")
    command = [str(launcher), "launch/train.sh", str(tiny_recipe), "train.run_name=literal"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(steps_of(load_recipe(str(tiny_recipe), ["train.run_name=literal"]).run_dir)) == 6
    told = (done.stdout + done.stderr).splitlines()
    (at,) = [
        number for number, line in enumerate(told) if line.startswith("trained 6 steps; `lape-ds export ")
    ]
    assert told[at + 1].startswith("held-out Maltese, bits per byte: ")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.neurons=nowhere.safetensors"], "train.neurons: no such file nowhere.safetensors"),
        (["train.optimizer.learning_rate=1e30", "train.gradient_clipping=0"], "training has diverged"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(tiny_recipe: Path, overrides: list[str], message: str) -> None:
    command = ["launch/train.sh", str(tiny_recipe), "train.run_name=wrong", "launch.num_ranks=2", *overrides]
    env = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, timeout=200, check=False, env=env
    )
    assert done.returncode == 2, done.stderr[-3000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) >= 1
    assert message in errors[0]
    assert "Traceback" not in done.stderr


def test_another_recipe_does_not_touch_the_run(tiny_recipe: Path, reference: Path) -> None:
    before = {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()}
    arguments = [str(tiny_recipe), "train.run_name=reference", "train.max_steps=7"]
    ((code, output),) = ends_of_ranks("lape_ds.training.main", arguments, world_size=1)
    assert code == 2
    assert "holds output of another recipe: train.max_steps is 7 now, 6 there" in output
    assert {path: path.read_bytes() for path in reference.rglob("*") if path.is_file()} == before


def test_export_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not the folder of a training"):
        export_model(tmp_path)
