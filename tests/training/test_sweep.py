"""A sweep with real ranks: killed, gone on with, a diverging run among the others, and each run as if trained alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from lape_ds.distributed.stopping import STOPPED
from lape_ds.errors import UserError
from lape_ds.recipe import SweepRun, load_recipe, sweep_runs
from lape_ds.training.export import export_model
from lape_ds.training.metrics import read_metrics
from lape_ds.training.run_folder import read_finished
from tests.processes import REPO, run_ranks

SWEEP = [
    "sweep.variants=[{method: subnetwork, learning_rates: [3e-3, 1e-2]}, {method: full, learning_rates: [1e-3, 1e30]}]",
    # 1e30 is to diverge at once: no warm-up and no clipping that would spare it.
    "sweep.set={train.schedule.warmup_steps: 0, train.gradient_clipping: 0}",
    "train.heldout.languages=[en, ka]",
    "train.checkpoint_every_steps=1",
]


@dataclass(frozen=True)
class Swept:
    """A sweep of 2 methods x 2 rates x 2 seeds in two workers that was killed, gone on with, and started once more."""

    overrides: list[str]
    runs: list[SweepRun]
    exit_code_stopped: int
    finished_when_stopped: dict[Path, bytes]  # metrics of these runs
    checkpoints_when_stopped: list[Path]
    printed: str
    printed_again: str


def command(recipe: Path, overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "lape_ds.cli", "sweep", str(recipe), *overrides]


def start(recipe: Path, overrides: list[str], log: Path) -> subprocess.Popen[bytes]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    with log.open("wb") as output:
        return subprocess.Popen(command(recipe, overrides), cwd=REPO, env=env, stdout=output, stderr=output)


def finished(runs: list[SweepRun]) -> list[SweepRun]:
    return [run for run in runs if read_finished(run.run_dir) is not None]


def stop_in_the_middle(process: subprocess.Popen[bytes], runs: list[SweepRun], log: Path) -> int:
    """SIGTERM when a run is finished and another one has taken a step; returns the exit code."""
    deadline = time.monotonic() + 200

    def in_the_middle() -> bool:
        left = [run for run in runs if read_finished(run.run_dir) is None]
        paths = [run.run_dir / "metrics.jsonl" for run in left]
        return len(left) < len(runs) and any(p.exists() and '"loss"' in p.read_text() for p in paths)

    while not in_the_middle():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.002)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    code = process.wait(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "workers were left behind"
    return code


@pytest.fixture(scope="module")
def swept(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = tmp_path_factory.mktemp("swept")
    overrides = [*SWEEP, f"output_dir={folder}/out", "sweep.workers=2"]
    runs = sweep_runs(load_recipe(tiny_recipe, overrides))
    logs = [folder / f"{number}.log" for number in range(3)]
    code = stop_in_the_middle(start(tiny_recipe, overrides, logs[0]), runs, logs[0])
    done = {run.run_dir: (run.run_dir / "metrics.jsonl").read_bytes() for run in finished(runs)}
    checkpoints = [path for run in runs for path in run.run_dir.glob("checkpoints/step-*/state.json")]
    for log in logs[1:]:
        assert start(tiny_recipe, overrides, log).wait(timeout=300) == 0, log.read_text()
    return Swept(overrides, runs, code, done, checkpoints, logs[1].read_text(), logs[2].read_text())


def test_killed_sweep_goes_on(swept: Swept) -> None:
    assert swept.exit_code_stopped == STOPPED
    assert 0 < len(swept.finished_when_stopped) < len(swept.runs)
    assert swept.checkpoints_when_stopped, "a run at hand was stopped without a checkpoint"
    assert len(finished(swept.runs)) == len(swept.runs) == 8
    for run_dir, metrics in swept.finished_when_stopped.items():
        assert (run_dir / "metrics.jsonl").read_bytes() == metrics, "a finished run was trained again"
    for run in swept.runs:
        steps = [line["step"] for line in read_metrics(run.run_dir / "metrics.jsonl") if "loss" in line]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) == 6 or run.learning_rate == 1e30
        assert not (run.run_dir / "checkpoints").exists(), (
            "a finished run keeps its checkpoints only when asked to"
        )
    assert "Sweep: 8/8 runs (100 %)" in swept.printed


def test_divergence_is_a_result(swept: Swept) -> None:
    for run in swept.runs:
        end = read_finished(run.run_dir)
        assert end is not None
        if run.learning_rate == 1e30:
            assert end.diverged is not None
            assert "training has diverged" in end.diverged
            assert end.before
            assert not end.after
        else:
            assert end.diverged is None
            assert end.after.keys() == end.before.keys() == {"mlt_Latn", "eng_Latn", "kat_Geor"}
    assert "full lr 1e+30 seed 0" in swept.printed


def test_a_run_is_as_if_trained_alone(tiny_recipe: Path, swept: Swept) -> None:
    """The last of a worker's runs, in a process of its own: nothing of the runs before it has rubbed off."""
    for run in (swept.runs[-2], swept.runs[5]):
        settings = [
            f"seed={run.seed}",
            f"train.method={run.recipe.train.method}",
            f"train.optimizer.learning_rate={run.learning_rate}",
            "train.schedule.warmup_steps=0",
            "train.gradient_clipping=0",
            "train.heldout.languages=[en, ka]",
            f"train.run_name=alone-{run.variant}",
        ]
        overrides = [swept.overrides[-2], *settings]
        run_ranks("lape_ds.training.main", [str(tiny_recipe), *overrides], world_size=1)
        alone = load_recipe(tiny_recipe, overrides).run_dir
        for key in ("loss", "gradient_norm", "heldout_bits_per_byte"):
            swept_values, alone_values = (
                [line[key] for line in read_metrics(folder / "metrics.jsonl") if key in line]
                for folder in (run.run_dir, alone)
            )
            assert swept_values == alone_values, key


def test_seeds_and_methods_differ(swept: Swept) -> None:
    ends = [read_finished(run.run_dir) for run in swept.runs]
    after = [tuple(end.after.values()) for end in ends if end is not None and end.after]
    assert len(set(after)) == len(after) == 6


def test_frontier_is_written_and_told(swept: Swept) -> None:
    folder = swept.runs[0].recipe.sweep_dir
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "frontier.svg").read_text(encoding="utf-8")
    content = json.loads((folder / "frontier.json").read_text(encoding="utf-8"))
    assert [variant["name"] for variant in content["variants"]] == ["subnetwork", "full"]
    # 3 neurons x 3 projections x hidden size 32
    assert content["variants"][0]["trained_parameters"] == 3 * 3 * 32
    full = {rate["learning_rate"]: rate for rate in content["variants"][1]["rates"]}
    assert full[1e30]["diverged"] == [0, 1]
    assert full[1e30]["mean"] is None
    ends = [read_finished(run.run_dir) for run in swept.runs if run.recipe.train.method == "full"]
    gains = [end.before["mlt_Latn"] - end.after["mlt_Latn"] for end in ends if end is not None and end.after]
    assert full[1e-3]["mean"]["gain"] == pytest.approx(sum(gains) / 2)
    page = (folder / "frontier.md").read_text(encoding="utf-8")
    for text in (page, " ".join(swept.printed.split())):
        assert "Gain on Maltese at equal mean change of the 2 other languages" in text
        assert "Diverged" in text


def test_finished_sweep_is_only_reported(swept: Swept) -> None:
    assert "runs; what their ranks say" not in swept.printed_again
    tables = [text[text.index("Gain on Maltese") :] for text in (swept.printed, swept.printed_again)]
    assert tables[0] == tables[1]


def test_other_settings_are_refused(tiny_recipe: Path, swept: Swept) -> None:
    done = subprocess.run(
        command(tiny_recipe, [*swept.overrides, "train.max_steps=7"]),
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "holds output of another recipe: train.max_steps is 7 now, 6 there" in done.stderr


def test_ranks_agree_on_divergence(tiny_recipe: Path, tmp_path: Path) -> None:
    """Two ranks under ZeRO-3: the first run diverges, the second must not find them out of step; the best is kept."""
    overrides = [
        *SWEEP,
        f"output_dir={tmp_path}/out",
        "sweep.variants=[{method: full, learning_rates: [1e30, 1e-3, 1e-6]}]",
        "sweep.seeds=[0]",
        "sweep.keep_checkpoints=tuned",
        "deepspeed.zero_stage=3",
        "train.gradient_accumulation_steps=1",
    ]
    run_ranks("lape_ds.training.main", ["--sweep", str(tiny_recipe), *overrides], world_size=2)
    runs = sweep_runs(load_recipe(tiny_recipe, overrides))
    ends = [read_finished(run.run_dir) for run in runs]
    assert [end is not None and end.diverged is not None for end in ends] == [True, False, False]
    assert [(run.run_dir / "checkpoints").exists() for run in runs] == [False, True, False]
    assert export_model(runs[1].run_dir, checkpoint="last").step == 6


def test_a_mistake_in_a_worker_is_one_line(tiny_recipe: Path, tmp_path: Path) -> None:
    overrides = [*SWEEP, f"output_dir={tmp_path}/out", "train.neurons=null", "sweep.workers=2"]
    done = subprocess.run(
        command(tiny_recipe, overrides), cwd=REPO, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 2, done.stderr[-3000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "no neuron set at" in errors[0]
    assert "Traceback" not in done.stderr


def test_what_a_variant_sets_is_checked_before_anything_starts(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, ["sweep.variants=[{method: full, set: {train.replay.share: 2}}]"])
    with pytest.raises(UserError, match=r"train\.replay\.share: must be less than 1.*sweep\.variants\.0"):
        sweep_runs(recipe)
