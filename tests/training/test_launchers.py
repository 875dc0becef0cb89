"""Command lines, hosts, what Slurm says; and a node of real processes that end, fail, are stopped and are abandoned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import torch

from lape_ds.errors import UserError
from lape_ds.recipe import load_recipe
from lape_ds.training.launchers.batch import STAGES, check_progress, kept_work, run_batch, srun_command
from lape_ds.training.launchers.hosts import chosen_hosts, first_address, read_hostfile
from lape_ds.training.launchers.job import PORTS, Job, free_port, node_command
from lape_ds.training.launchers.options import HOST_OPTIONS, CommandLine, read_command_line
from lape_ds.training.launchers.running import run_launchers
from lape_ds.training.launchers.slurm import at_time_limit, become_rank, job_name, tasks_per_node
from lape_ds.training.stopping import STOPPED
from tests.processes import REPO


def read(*arguments: str) -> CommandLine:
    return read_command_line(arguments, script="launch/train.sh", allowed=HOST_OPTIONS)


def test_options_and_settings_are_told_apart() -> None:
    command = read("--hostfile", "hosts", "--num-gpus=2", "r.yaml", "train.tokens=5", "name=--x")
    assert command == CommandLine(
        {"hostfile": "hosts", "num_gpus": "2"}, "r.yaml", ["train.tokens=5", "name=--x"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["r.yaml", "--hostfile", "hosts"], "--hostfile is a launcher option and goes before the recipe"),
        (["r.yaml", "--num-gpus=2"], "--num-gpus is a launcher option and goes before the recipe"),
        (["r.yaml", "--lr", "1"], "unknown option --lr: behind the recipe stand its settings, key=value"),
        (["--hostfil", "hosts", "r.yaml"], "unknown option --hostfil; did you mean --hostfile?"),
        (["-H", "hosts", "r.yaml"], "unknown option -H"),
        (["train.tokens=5", "r.yaml"], "train.tokens=5 stands before the recipe"),
        (["--hostfile"], "--hostfile needs a value"),
        (["--num_gpus", "two", "r.yaml"], "--num_gpus must be a number from 1, not 'two'"),
        (["--master_port", "70000", "r.yaml"], "--master_port must be a number from 1 to 65535"),
        (["--num_gpus", "1", "--num-gpus", "2", "r.yaml"], "--num_gpus is given twice"),
        ([], "which recipe? usage: launch/train.sh"),
    ],
)
def test_what_stands_in_the_wrong_place_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        read(*arguments)
    assert message in str(refused.value)


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("# ours\nn1 slots=2\n\nn2 slots=4  # bigger\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"n1": ["0", "1"], "n2": ["0", "1", "2", "3"]}),
        ({"include": "n2:1,3@n1"}, {"n1": ["0", "1"], "n2": ["1", "3"]}),
        ({"exclude": "n2:0@n1"}, {"n2": ["1", "2", "3"]}),
        ({"num_nodes": "1"}, {"n1": ["0", "1"]}),
        ({"num_gpus": "1"}, {"n1": ["0"], "n2": ["0"]}),
    ],
)
def test_hosts_of_a_hostfile(hostfile: Path, options: dict[str, str], expected: dict[str, list[str]]) -> None:
    command = CommandLine({"hostfile": str(hostfile), **options}, "r.yaml", [])
    assert chosen_hosts(command, num_ranks=8) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include": "n3"}, "--include: no host 'n3'; there are n1, n2"),
        ({"include": "n1:2"}, "--include: n1 has no slot '2'; it has 0, 1"),
        ({"exclude": "n1@n2"}, "--exclude leaves no host"),
        ({"include": "n1", "exclude": "n2"}, "cannot go together"),
        ({"include": "n1", "num_gpus": "1"}, "cannot go with --include"),
        ({"num_nodes": "3"}, "there are only 2"),
        ({"num_gpus": "3"}, "n1 has only 2 slots"),
    ],
)
def test_hosts_that_are_not_there(hostfile: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        chosen_hosts(CommandLine({"hostfile": str(hostfile), **options}, "r.yaml", []), num_ranks=None)
    assert message in str(refused.value)


@pytest.mark.parametrize("text", ["n1\n", "n1 slots=0\n", "n1 slots=1\nn1 slots=2\n", "# none\n"])
def test_bad_hostfiles(tmp_path: Path, text: str) -> None:
    (tmp_path / "hosts").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="hostfile"):
        read_hostfile(tmp_path / "hosts")


def test_a_first_host_that_the_others_cannot_find() -> None:
    with pytest.raises(UserError, match="first host is localhost"):
        first_address({"localhost": ["0"], "n2": ["0"]})
    assert first_address({"n1": ["0"], "n2": ["0"]}) == "n1"
    assert first_address({"localhost": ["0"]}) == "127.0.0.1"


def test_ranks_on_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_hosts(CommandLine({}, "r.yaml", []), num_ranks=2) == {"localhost": ["0", "1"]}
    assert chosen_hosts(CommandLine({"num_gpus": "3"}, "r.yaml", []), num_ranks=2) == {
        "localhost": ["0", "1", "2"]
    }


def test_ranks_are_numbered_over_hosts() -> None:
    job = Job.decoded(Job({"n1": ["0", "1"], "n2": ["2"]}, "m", ["a b", "ü=%h"], "n1", 1).encoded())
    assert job.arguments == ["a b", "ü=%h"]
    (rank,) = job.rank_environments("n2")
    assert (rank["RANK"], rank["LOCAL_RANK"], rank["WORLD_SIZE"]) == ("2", "0", "3")
    assert (rank["LOCAL_WORLD_SIZE"], rank["CUDA_VISIBLE_DEVICES"], rank["MASTER_ADDR"]) == ("1", "2", "n1")
    assert [rank["RANK"] for rank in job.rank_environments("n1")] == ["0", "1"]


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
        env=os.environ | told,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "error: this is a Slurm job, but scontrol is not on PATH\n")


QUICKSTART = "recipes/quickstart.yaml"


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
    ],
)
def test_mistakes_in_a_batch_job(
    slurm_job: Callable[..., None], task: str | None, arguments: list[str], message: str
) -> None:
    slurm_job(**({"ARRAY_TASK_ID": task} if task else {}))
    with pytest.raises(UserError) as refused:
        run_batch(arguments)
    assert message in str(refused.value)


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
    ):
        written.parent.mkdir(parents=True)
        written.write_text("{}", encoding="utf-8")
        check_progress("train", recipe, before)
        before = kept_work(recipe)
        with pytest.raises(UserError, match="a longer --time"):
            check_progress("corpus", recipe, before)
    with pytest.raises(UserError, match="--stage eval, which begins anew"):
        check_progress("eval", recipe, {})


@pytest.mark.parametrize(
    "told",
    [
        {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "{}"},
        {"RANK": "{}", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"},
    ],
)
def test_one_of_many_tasks_does_what_takes_one_process(told: dict[str, str]) -> None:
    """`srun -n 2 lape-ds identify …` does not count everything twice into the same files."""
    printed = []
    for number in range(2):
        environment = os.environ | {name: value.format(number) for name, value in told.items()}
        command = [sys.executable, "-m", "lape_ds.cli", "languages", "Maltese"]
        done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True)
        printed.append(done.stdout)
    assert "mlt_Latn" in printed[0]
    assert printed[1] == ""


STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); "
SAVING = f"signal.signal(signal.SIGTERM, lambda *_: os._exit({STOPPED})); "


StartNode = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[StartNode]:
    """Starts nodes whose processes run some code, with `rank` there, and say `up`."""
    with ExitStack() as nodes:

        def start(code: str, *, num_ranks: int = 2) -> subprocess.Popen[str]:
            text = f"import os, signal, sys, time\nrank = int(os.environ['RANK'])\n{code}\n"
            (tmp_path / "ranks_code.py").write_text(text, encoding="utf-8")
            job = Job(
                {"localhost": [str(slot) for slot in range(num_ranks)]}, "ranks_code", [], "127.0.0.1", 1
            )
            node = subprocess.Popen(
                node_command(job, "localhost"),
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), str(tmp_path)])},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            nodes.enter_context(node)
            nodes.callback(node.terminate)
            return node

        yield start


def wait_for_ranks(node: subprocess.Popen[str], number: int = 2) -> list[psutil.Process]:
    assert node.stdout is not None
    for _ in range(number):
        assert node.stdout.readline() == "up\n"
    return psutil.Process(node.pid).children()


UP = "os.write(1, b'up\\n'); time.sleep(60)"


def test_a_node_ends_with_its_ranks(start_node: StartNode) -> None:
    assert start_node("pass").wait(timeout=20) == 0


def test_a_failing_rank_ends_a_stubborn_one_at_once_and_not_one_after_the_other(
    start_node: StartNode,
) -> None:
    fails = "if rank == 1: time.sleep(1); sys.exit(2)\n"
    node = start_node(f"{STUBBORN}os.write(1, b'up\\n')\n{fails}time.sleep(60)", num_ranks=4)
    ranks = wait_for_ranks(node, 4)
    started = time.monotonic()
    assert node.wait(timeout=30) == 2
    assert (
        time.monotonic() - started < 20
    )  # 10 s of patience for all three; DeepSpeed's launcher: 30 s for each
    assert not any(rank.is_running() for rank in ranks)


def test_a_killed_rank_is_a_failure(start_node: StartNode) -> None:
    node = start_node(SAVING + UP)
    wait_for_ranks(node)[0].kill()
    assert node.wait(timeout=20) == 128 + signal.SIGKILL


LINKED = """
from datetime import timedelta
from lape_ds.training import heartbeat
from lape_ds.training.stopping import StopRequest
os.environ['MASTER_PORT'] = '{port}'
with StopRequest():
    heartbeat.join(rank, 2, timeout=timedelta(seconds=30)).wait_for_all(timedelta(seconds=30))
    os.write(1, b'up\\n')
    time.sleep(60)
"""


def test_who_was_killed_in_set_up_is_told(start_node: StartNode, capfd: pytest.CaptureFixture[str]) -> None:
    """The node sees a death sooner than the first rank, which is to tell of it, has ended listening."""
    node = start_node(LINKED.format(port=free_port()))
    by_rank = {rank.environ()["RANK"]: rank for rank in wait_for_ranks(node)}
    by_rank["1"].kill()
    assert node.wait(timeout=20) == 128 + signal.SIGKILL
    printed = capfd.readouterr().err
    assert "error: rank 1 on " in printed
    assert "it was killed" in printed
    assert "the same command goes on" not in printed


def test_a_child_that_ends_with_its_launcher() -> None:
    """As pdsh must, in a session of its own, whatever the launcher dies of."""
    code = "import subprocess, sys, time\nfrom lape_ds.training.launchers.pdsh import end_with_parent\n"
    code += "child = subprocess.Popen(['sleep', '60'], start_new_session=True, preexec_fn=end_with_parent)\n"
    code += "print(child.pid, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None
        child = psutil.Process(int(launcher.stdout.readline()))
        assert child.name() == "sleep"
        launcher.kill()
        psutil.wait_procs([child], timeout=5)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("endings", "code"),
    [
        (["sys.exit(130)", "sys.exit(2)"], 2),  # the checkpoint of one could not be written
        (["sys.exit(130)", "sys.exit(0)"], STOPPED),
        (["sys.exit(0)", "sys.exit(0)"], 0),  # had just come to their end
        (["os.kill(os.getpid(), 15)", "sys.exit(130)"], STOPPED),
        (["os.kill(os.getpid(), 9)", "sys.exit(130)"], -signal.SIGKILL),
    ],
)
def test_a_stop_does_not_hide_a_failure(tmp_path: Path, endings: list[str], code: int) -> None:
    def ready() -> None:
        if not told and all((tmp_path / f"up{number}").exists() for number in range(len(endings))):
            told.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    told: list[bool] = []
    launchers = []
    for number, ending in enumerate(endings):
        up = f"open({str(tmp_path / f'up{number}')!r}, 'w').close()"
        stop = f"signal.signal(signal.SIGTERM, signal.SIG_DFL); {ending}"
        text = f"import os, signal, sys\ndef stop(*_): {stop}\nsignal.signal(15, stop); {up}; signal.pause()"
        launchers.append([sys.executable, "-c", text])
    assert run_launchers(launchers, watch=ready) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_stopped_node_waits_for_its_ranks(start_node: StartNode, number: int) -> None:
    node = start_node(SAVING + UP)
    ranks = wait_for_ranks(node)
    node.send_signal(number)
    assert node.wait(timeout=20) == STOPPED
    assert not any(rank.is_running() for rank in ranks)


def test_a_rank_that_waits_for_one_stopped_too_early_is_ended(start_node: StartNode) -> None:
    """No failure: nothing was lost, and the run is to go on."""
    node = start_node(f"if rank == 1: {STUBBORN}\n{UP}")
    wait_for_ranks(node)
    node.terminate()
    assert node.wait(timeout=20) == STOPPED


def test_an_abandoned_node_stops_its_ranks(start_node: StartNode) -> None:
    node = start_node(SAVING + UP)
    ranks = wait_for_ranks(node)
    assert node.stdin is not None
    node.stdin.close()
    assert node.wait(timeout=20) == STOPPED
    assert not any(rank.is_running() for rank in ranks)


def test_only_the_named_job_is_stopped(start_node: StartNode) -> None:
    nodes = [start_node(SAVING + UP) for _ in range(2)]
    for node in nodes:
        wait_for_ranks(node)
    token = psutil.Process(nodes[0].pid).cmdline()[3]
    stop = [sys.executable, "-m", "lape_ds.training.launchers.node", "--stop", token]
    subprocess.run(stop, cwd=REPO, check=True)
    assert nodes[0].wait(timeout=20) == STOPPED
    assert nodes[1].poll() is None
    nodes[1].terminate()
    assert nodes[1].wait(timeout=20) == STOPPED
