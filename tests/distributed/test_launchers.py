"""Command lines and hosts; and a node of real processes that end, fail, are stopped and are abandoned."""

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

from lape_ds.distributed.launchers.hosts import chosen_hosts, first_address, read_hostfile
from lape_ds.distributed.launchers.job import Job, free_port, node_command
from lape_ds.distributed.launchers.options import HOST_OPTIONS, CommandLine, read_command_line
from lape_ds.distributed.launchers.running import run_launchers
from lape_ds.distributed.stopping import STOPPED
from lape_ds.errors import UserError
from tests.processes import REPO


def read(*arguments: str) -> CommandLine:
    return read_command_line(arguments, script="launch/train.sh", allowed=HOST_OPTIONS)


def test_options_and_settings_are_told_apart() -> None:
    command = read("--hostfile", "hosts", "--num-gpus=2", "r.yaml", "train.tokens=5", "name=--x")
    assert command == CommandLine(
        {"hostfile": "hosts", "num_gpus": "2"}, "r.yaml", ["train.tokens=5", "name=--x"]
    )


def test_an_evaluation_takes_options_of_its_own_behind_the_recipe() -> None:
    words = [
        "--hostfile",
        "hosts",
        "r.yaml",
        "run",
        "eval.limit=2",
        "--suite=general",
        "--languages",
        "mt,en",
    ]
    command = read_command_line(words, script="launch/eval.sh", allowed=HOST_OPTIONS, passed_on=True)
    assert command == CommandLine({"hostfile": "hosts"}, "r.yaml", words[3:])
    assert command.settings == ["eval.limit=2"]
    with pytest.raises(UserError, match="--num-gpus is a launcher option and goes before the recipe"):
        read_command_line(
            ["r.yaml", "--num-gpus=2"], script="launch/eval.sh", allowed=HOST_OPTIONS, passed_on=True
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
from lape_ds.distributed import heartbeat
from lape_ds.distributed.stopping import StopRequest
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
    code = "import subprocess, sys, time\nfrom lape_ds.distributed.launchers.pdsh import end_with_parent\n"
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
    stop = [sys.executable, "-m", "lape_ds.distributed.launchers.node", "--stop", token]
    subprocess.run(stop, cwd=REPO, check=True)
    assert nodes[0].wait(timeout=20) == STOPPED
    assert nodes[1].poll() is None
    nodes[1].terminate()
    assert nodes[1].wait(timeout=20) == STOPPED
