"""Two Slurm nodes: from the recipe to the table, interrupted and preempted on the way; arrays; ranks by srun and torchrun."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lape_ds.recipe import load_recipe
from tests.cluster.conftest import STEPS, ranks_that_counted
from tests.cluster.machines import HOSTS, free_ports
from tests.cluster.watching import same_weights, steps_logged, steps_taken, wait_until
from tests.processes import REPO

pytestmark = pytest.mark.cluster


def slurm_command(*command: str, env: Mapping[str, str], code: int = 0) -> str:
    done = subprocess.run(
        command,
        cwd=REPO,
        env={**env, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def submit(
    log: Path, *arguments: str, options: Sequence[str] = (), env: Mapping[str, str], code: int = 0
) -> str:
    """Submits `launch/slurm.sbatch`; the job's number."""
    command = ["sbatch", "--parsable", f"--output={log}", *options, "launch/slurm.sbatch", *arguments]
    try:
        return slurm_command(*command, env=env, code=code).split()[0]
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text() if log.exists() else ''}") from None


def job(number: str, *, env: Mapping[str, str]) -> dict[str, str]:
    """What `scontrol show job` says."""
    return dict(re.findall(r"(\S+?)=(\S*)", slurm_command("scontrol", "show", "job", number, env=env)))


def test_preempted_twice_and_the_same_weights(
    recipe: Path, slurm: Mapping[str, str], undisturbed: Path, folder: Path
) -> None:
    """Against two hosts through pdsh, which nobody disturbed."""
    settings = [f"output_dir={folder}/slurm-out"]
    run_dir = load_recipe(recipe, settings).run_dir
    submit(
        folder / "identify.log",
        "--stage",
        "identify",
        str(recipe),
        *settings,
        options=["--wait", "--nodes=2"],
        env=slurm,
    )
    assert ranks_that_counted(load_recipe(recipe, settings)) == 2
    log = folder / "train.log"
    number = submit(log, str(recipe), *settings, options=["--nodes=2"], env=slurm)

    wait_until(lambda: steps_taken(run_dir) > 2, "third step")
    slurm_command("scancel", "--signal=USR1", number, env=slurm)
    wait_until(lambda: job(number, env=slurm)["Restarts"] == "1", "requeue")
    stopped_at = steps_taken(run_dir)
    assert 2 < stopped_at < STEPS

    wait_until(lambda: steps_taken(run_dir) > stopped_at + 2, "further step")
    slurm_command(
        "sbatch",
        "--partition=urgent",
        "--nodes=2",
        "--exclusive",
        "--wrap=true",
        "--output=/dev/null",
        env=slurm,
    )
    wait_until(lambda: job(number, env=slurm)["Restarts"] == "2", "preemption")
    assert stopped_at < steps_taken(run_dir) < STEPS

    wait_until(lambda: job(number, env=slurm)["JobState"] == "COMPLETED", "end of the job")
    assert steps_logged(run_dir) == list(range(1, STEPS + 1))
    assert same_weights(run_dir, undisturbed)
    assert f"trained {STEPS} steps" in log.read_text()

    submit(
        folder / "eval.log",
        "--stage",
        "eval",
        str(recipe),
        *settings,
        options=["--wait", "--nodes=2"],
        env=slurm,
    )
    assert "subnetwork" in (folder / "eval.log").read_text()


def test_an_array_trains_a_language_each_and_one_is_interrupted(
    recipe: Path, slurm: Mapping[str, str], undisturbed: Path, folder: Path
) -> None:
    """The one that Slurm gives the array's own number."""
    number = submit(
        folder / "array-%a.log",
        *("--languages", "mt,en", str(recipe), "train.heldout.languages=[ka]"),
        options=["--array=0-1", "--nodes=1"],
        env=slurm,
    )
    runs = [undisturbed.with_name(f"subnetwork-{code}") for code in ("mlt_Latn", "eng_Latn")]
    wait_until(lambda: all(steps_taken(run) > 2 for run in runs), "third step of both")
    tasks = [f"{number}_{task}" for task in range(2)]
    (first,) = (task for task in tasks if job(task, env=slurm)["JobId"] == number)
    slurm_command("scancel", "--signal=USR1", first, env=slurm)
    wait_until(lambda: job(first, env=slurm)["Restarts"] == "1", "requeue")
    wait_until(lambda: {job(task, env=slurm)["JobState"] for task in tasks} == {"COMPLETED"}, "end of both")
    assert [job(task, env=slurm)["Restarts"] == "1" for task in tasks] == [task == first for task in tasks]
    assert [steps_logged(run) for run in runs] == [list(range(1, STEPS + 1))] * 2


def test_mistakes_are_told_once_and_the_job_fails(
    recipe: Path, slurm: Mapping[str, str], folder: Path
) -> None:
    log = folder / "wrong.log"
    submit(log, str(recipe), "train.method=none", options=["--wait", "--nodes=2"], env=slurm, code=2)
    errors = [line for line in log.read_text().splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "train.method" in errors[0]


def test_srun_starts_the_ranks_of_lape_ds_train(
    recipe: Path, slurm: Mapping[str, str], undisturbed: Path, folder: Path
) -> None:
    short = [
        "train.run_name=by-srun",
        "train.max_steps=2",
        "train.heldout.every_steps=2",
        "train.schedule.warmup_steps=0",
    ]
    command = [
        "srun",
        "--nodes=2",
        "--ntasks=2",
        sys.executable,
        "-m",
        "lape_ds.cli",
        "train",
        str(recipe),
        *short,
    ]
    printed = slurm_command(*command, env=slurm)
    assert printed.count("trained 2 steps") == 1
    assert steps_logged(undisturbed.with_name("by-srun")) == [1, 2]


def test_launcher_options_are_refused_inside_srun(recipe: Path, slurm: Mapping[str, str]) -> None:
    command = ["srun", "--nodes=2", "--ntasks=2", "launch/train.sh", "--num_gpus", "2", str(recipe)]
    printed = slurm_command(*command, env=slurm, code=2)
    assert "error: --num_gpus has no use inside srun or torchrun" in printed


def test_torchrun_on_two_nodes(recipe: Path, undisturbed: Path, pdsh: Mapping[str, str]) -> None:
    (port,) = free_ports(1)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    torchrun += [f"--master-addr={HOSTS[0]}", f"--master-port={port}"]
    agents = [
        subprocess.Popen(
            [*torchrun, f"--node-rank={node}", "launch/train.sh", str(recipe), "train.run_name=by-torchrun"],
            cwd=REPO,
            env=dict(pdsh),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    printed = [agent.communicate(timeout=120)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert same_weights(undisturbed.with_name("by-torchrun"), undisturbed)
