"""What Slurm says to the tasks of a step and to a batch job; the real one is in tests/cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lape_ds.distributed.launchers.batch import (
    STAGES,
    _with_number,
    _with_part,
    check_progress,
    kept_work,
    run_batch,
    srun_command,
)
from lape_ds.distributed.launchers.job import PORTS
from lape_ds.distributed.launchers.options import CommandLine
from lape_ds.distributed.launchers.slurm import at_time_limit, become_rank, job_name, tasks_per_node
from lape_ds.errors import UserError
from lape_ds.recipe import load_recipe
from tests.processes import REPO


def unranked() -> dict[str, str]:
    """The environment without what a training in this very process has said of its rank."""
    said = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in said}


def test_tasks_per_node_as_slurm_writes_them() -> None:
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("8") == [8]


@pytest.mark.parametrize(("visible", "local_rank"), [("0,1,2,3", "3"), ("0", "0")])
def test_a_task_with_a_gpu_of_its_own_takes_the_first(
    monkeypatch: pytest.MonkeyPatch, visible: str, local_rank: str
) -> None:
    """`--gpus-per-task=1` shows each task one GPU; whoever took number 3 of it would fail."""
    told = {"SLURM_STEP_ID": "1", "SLURM_JOB_ID": "77", "SLURM_PROCID": "7", "SLURM_LOCALID": "3"}
    told |= {"SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
    told |= {"CUDA_VISIBLE_DEVICES": visible, "MASTER_ADDR": "n1"}
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
    for name in names:
        monkeypatch.setenv(name, "")  # so that they are taken away again
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    become_rank()
    assert [os.environ[name] for name in names[:4]] == ["7", local_rank, "8", "4"]
    assert int(os.environ["MASTER_PORT"]) in PORTS


def test_a_node_without_scontrol_is_told_in_a_line(tmp_path: Path) -> None:
    """Such as a container: nobody is known yet to whom a rank could tell it."""
    told = {"SLURM_STEP_ID": "0", "SLURM_JOB_ID": "7", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    told |= {"SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    told |= {"SLURM_STEP_NODELIST": "n[1-2]", "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "lape_ds.training.main", QUICKSTART],
        cwd=REPO,
        env=unranked() | told,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "error: this is a Slurm job, but scontrol is not on PATH\n")


QUICKSTART = "recipes/quickstart.yaml"
MATRIX = "recipes/paper/quickstart.yaml"


@pytest.fixture
def slurm_job(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what Slurm would tell a batch script."""

    def tell(**told: str) -> None:
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            monkeypatch.delenv(name)
        for name, value in {"JOB_ID": "7", "JOB_NUM_NODES": "2", **told}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)

    return tell


@pytest.mark.parametrize(
    ("told", "num_ranks", "expected"),
    [
        ({"GPUS_ON_NODE": "8", "CPUS_ON_NODE": "64"}, None, 8),
        ({"GPUS_ON_NODE": "8", "CPUS_ON_NODE": "64"}, 4, 4),
        ({"GPUS_ON_NODE": "2", "CPUS_ON_NODE": "64"}, 4, 2),  # never two on one GPU
        ({"NTASKS_PER_NODE": "3", "GPUS_ON_NODE": "8", "CPUS_ON_NODE": "3"}, None, 3),
        ({"NTASKS": "6", "GPUS_ON_NODE": "8", "CPUS_ON_NODE": "64"}, None, 3),
        ({"CPUS_ON_NODE": "4"}, 4, 4),
        ({"CPUS_ON_NODE": "4"}, None, 1),
    ],
)
def test_ranks_of_a_slurm_job(
    slurm_job: Callable[..., None], told: dict[str, str], num_ranks: int | None, expected: int
) -> None:
    slurm_job(**told)
    settings = [f"launch.num_ranks={num_ranks if num_ranks else 'null'}"]
    command = srun_command("train", CommandLine({}, QUICKSTART, settings), load_recipe(QUICKSTART, settings))
    assert {"--nodes=2", f"--ntasks={2 * expected}", f"--ntasks-per-node={expected}"} <= set(command)
    assert command[-2:] == [QUICKSTART, *settings]


@pytest.mark.parametrize("stage", ["identify", "eval"])
def test_it_has_the_ranks_of_a_training(slurm_job: Callable[..., None], stage: str) -> None:
    slurm_job(GPUS_ON_NODE="4", CPUS_ON_NODE="16")
    settings = ["launch.num_ranks=null"]
    command = CommandLine({}, QUICKSTART, settings)
    words = srun_command(stage, command, load_recipe(QUICKSTART, settings))
    assert {"--nodes=2", "--ntasks=8", "--ntasks-per-node=4"} <= set(words)
    assert words[words.index("env") + 1].startswith("MASTER_PORT=")
    assert words[-5:] == ["-m", "lape_ds.cli", stage, QUICKSTART, *settings]


def test_one_process_of_vllm_has_one_task(slurm_job: Callable[..., None]) -> None:
    slurm_job(GPUS_ON_NODE="4", CPUS_ON_NODE="16")
    settings = ["launch.num_ranks=null"]
    command = CommandLine({}, QUICKSTART, settings)
    # vLLM divides a model by itself, over the GPUs of one node.
    words = srun_command("eval", command, load_recipe(QUICKSTART, [*settings, "eval.backend=vllm"]))
    assert {"--nodes=1", "--ntasks=1"} <= set(words)


def test_a_single_task_starts_no_ranks_of_its_own(slurm_job: Callable[..., None]) -> None:
    slurm_job(JOB_NUM_NODES="1", NTASKS_PER_NODE="1", GPUS_ON_NODE="4", CPUS_ON_NODE="16")
    words = srun_command("eval", CommandLine({}, QUICKSTART, []), load_recipe(QUICKSTART))
    assert words[-2:] == [QUICKSTART, "launch.num_ranks=1"]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_the_cpus_of_a_task(slurm_job: Callable[..., None], stage: str) -> None:
    slurm_job(CPUS_PER_TASK="6", NTASKS_PER_NODE="1")
    command = srun_command(stage, CommandLine({}, QUICKSTART, []), load_recipe(QUICKSTART))
    assert "--cpus-per-task=6" in command[: command.index(sys.executable)]


def test_tasks_that_do_not_fit_the_nodes_are_refused(slurm_job: Callable[..., None]) -> None:
    slurm_job(NTASKS="3")
    with pytest.raises(UserError, match="--ntasks=3 does not give each of 2 nodes as many ranks"):
        srun_command("train", CommandLine({}, QUICKSTART, []), load_recipe(QUICKSTART))


def test_a_job_with_too_few_cpus_is_told_what_to_ask_for(slurm_job: Callable[..., None]) -> None:
    slurm_job(CPUS_ON_NODE="1")  # what sbatch gives when nothing is said
    with pytest.raises(UserError, match="1 CPUs on a node for 2 ranks: submit it with --ntasks-per-node=2"):
        srun_command("train", CommandLine({}, QUICKSTART, []), load_recipe(QUICKSTART))


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("2", ["--languages", "mt,en", QUICKSTART], "array task 2 has no language: --languages names 2"),
        ("0", [QUICKSTART], "each task of a job array must train something else"),
        (None, ["--languages", "mt,en", QUICKSTART], "--languages is for a job array"),
        (None, ["--stage", "sing", QUICKSTART], "--stage must be one of train, corpus, identify"),
        ("0", ["--languages", "Maltees,en", QUICKSTART], "did you mean Maltese"),
        (None, ["--hostfile", "hosts", QUICKSTART], "unknown option --hostfile"),
        ("0", ["--stage", "identify", "--languages", "mt", QUICKSTART], "--languages is for trainings"),
        ("0", ["--stage", "matrix", "--languages", "mt", MATRIX], "a matrix names its languages itself"),
        (
            None,
            ["--stage", "matrix", MATRIX],
            f"sbatch --array=0-2 launch/slurm.sbatch --stage matrix {MATRIX}",
        ),
        ("3", ["--stage", "matrix", MATRIX], "--array=0-2"),
    ],
)
def test_mistakes_in_a_batch_job(
    slurm_job: Callable[..., None], task: str | None, arguments: list[str], message: str
) -> None:
    slurm_job(**({"ARRAY_TASK_ID": task} if task else {}))
    with pytest.raises(UserError) as refused:
        run_batch(arguments)
    assert message in str(refused.value)


def test_an_array_has_a_language_of_a_matrix_in_each_task(slurm_job: Callable[..., None]) -> None:
    slurm_job(ARRAY_TASK_ID="1")
    command, recipe = _with_number(CommandLine({}, MATRIX, ["keep_models=true"]))
    assert recipe.languages.target == "cym_Latn"
    words = srun_command("matrix", command, recipe)
    assert {"--nodes=1", "--ntasks=1"} <= set(words)
    assert words[-5:] == ["matrix", "run", MATRIX, "keep_models=true", "--number=1"]


def test_what_has_failed_can_be_tried_again_in_an_array(
    slurm_job: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_job(ARRAY_TASK_ID="1")
    started: list[list[str]] = []

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        started.append(command)
        return subprocess_popen([sys.executable, "-c", ""])

    subprocess_popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    assert run_batch(["--stage", "matrix", MATRIX, "keep_models=true", "--retry"]) == 0
    assert started[0][-5:] == ["run", MATRIX, "keep_models=true", "--retry", "--number=1"]
    with pytest.raises(UserError, match="unknown option --retry"):
        run_batch(["--stage", "identify", QUICKSTART, "--retry"])


@pytest.mark.parametrize("stage", ["matrix", "corpus", "export"])
def test_a_single_process_has_all_cpus_of_its_node(slurm_job: Callable[..., None], stage: str) -> None:
    """srun would give it one, and the ranks that a matrix starts as well."""
    slurm_job(CPUS_ON_NODE="48", GPUS_ON_NODE="8")
    command = srun_command(stage, CommandLine({}, QUICKSTART, []), load_recipe(QUICKSTART))
    assert "--cpus-per-task=48" in command


def test_an_array_counts_a_part_in_each_task(slurm_job: Callable[..., None]) -> None:
    slurm_job(ARRAY_TASK_ID="2", ARRAY_TASK_MIN="0", ARRAY_TASK_MAX="3", ARRAY_TASK_COUNT="4")
    assert _with_part(CommandLine({}, QUICKSTART, [])).overrides == ["identify.part=2/4"]
    with pytest.raises(UserError, match="4 array tasks would count the same"):
        _with_part(CommandLine({}, QUICKSTART, ["identify.part=3/8"]))


@pytest.mark.parametrize(
    ("first", "last", "num_tasks"),
    [(3, 3, 1), (4, 7, 4), (0, 6, 4), (0, 0, 1)],
    ids=["3", "4-7", "0-6:2", "0"],
)
def test_a_repeated_array_task_is_not_all_parts(
    slurm_job: Callable[..., None], first: int, last: int, num_tasks: int
) -> None:
    """`--array=3` after a failure would count everything as part 0/1; the part is named instead."""
    slurm_job(
        ARRAY_TASK_ID=str(last),
        ARRAY_TASK_MIN=str(first),
        ARRAY_TASK_MAX=str(last),
        ARRAY_TASK_COUNT=str(num_tasks),
    )
    with pytest.raises(UserError, match=f"--stage identify {QUICKSTART} identify.part=3/8"):
        _with_part(CommandLine({}, QUICKSTART, []))
    if num_tasks == 1:
        named = CommandLine({}, QUICKSTART, ["identify.part=3/8"])
        assert _with_part(named) == named


def test_one_task_of_an_array_is_not_all_of_it(slurm_job: Callable[..., None]) -> None:
    """Slurm gives the array's number to one of its tasks, as its own; `scontrol requeue` of it means all tasks."""
    slurm_job()
    assert job_name() == "7"
    slurm_job(ARRAY_JOB_ID="7", ARRAY_TASK_ID="2")
    assert job_name() == "7_2"


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ("RunTime=00:58:00 TimeLimit=01:00:00", True),
        ("RunTime=00:20:00 TimeLimit=01:00:00", False),  # preempted, its EndTime is near all the same
        ("RunTime=1-02:00:00 TimeLimit=1-04:00:00", True),
        ("RunTime=1-00:00:00 TimeLimit=2-00:00:00", False),
        ("RunTime=9-00:00:00 TimeLimit=UNLIMITED", False),
    ],
)
def test_a_preempted_job_is_not_at_its_time_limit(times: str, expected: bool) -> None:
    assert at_time_limit(f"   JobState=RUNNING\n   {times} TimeMin=N/A\n   EndTime=x") == expected


def test_a_job_that_gets_nowhere_is_not_queued_for_ever(
    slurm_job: Callable[..., None], tmp_path: Path
) -> None:
    recipe = load_recipe(QUICKSTART, [f"output_dir={tmp_path}"])
    slurm_job()
    check_progress("train", recipe, kept_work(recipe))  # its first start
    slurm_job(RESTART_COUNT="1")
    before = kept_work(recipe)
    with pytest.raises(UserError, match="start 2 of this job had all its time and made no progress"):
        check_progress("train", recipe, before)
    for written in (
        tmp_path / "corpus/mlt_Latn/abc/state.json",
        recipe.run_dir / "checkpoints/step-00000001/x",
        recipe.output_dir / "train/sweep/full/lr-1e-05/seed-0/checkpoints/step-00000001/x",
        recipe.output_dir / "eval/base/cldr_topic_mlt_Latn.json",
        recipe.output_dir / "identify/units/mlt_Latn/0-8.safetensors",
        recipe.output_dir / "identify/counts/mlt_Latn.safetensors",
    ):
        written.parent.mkdir(parents=True)
        written.write_text("{}", encoding="utf-8")
        check_progress("train", recipe, before)
        before = kept_work(recipe)
        with pytest.raises(UserError, match="a longer --time"):
            check_progress("corpus", recipe, before)
    with pytest.raises(UserError, match="--stage export, which begins anew"):
        check_progress("export", recipe, {})


@pytest.mark.parametrize(
    "told",
    [
        {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "{}"},
        {"RANK": "{}", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"},
    ],
)
def test_one_of_many_tasks_does_what_takes_one_process(told: dict[str, str]) -> None:
    """`srun -n 2 lape-ds export …` does not write everything twice into the same files."""
    printed = []
    for number in range(2):
        environment = unranked() | {name: value.format(number) for name, value in told.items()}
        command = [sys.executable, "-m", "lape_ds.cli", "languages", "Maltese"]
        done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True)
        printed.append(done.stdout)
    assert "mlt_Latn" in printed[0]
    assert printed[1] == ""
