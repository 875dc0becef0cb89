"""How ranks learn of each other's ends, on lines alone: no model, no process group."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from lape_ds.distributed import heartbeat
from lape_ds.distributed.launchers.job import free_port
from lape_ds.distributed.stopping import STOPPED
from lape_ds.errors import UserError
from tests.faults.job import Job


def job_of(folder: Path, *actions: str, seconds: float = 30) -> Job:
    arguments = [*actions, str(seconds)]
    return Job(
        folder, arguments, world_size=len(actions), module="tests.distributed.heartbeat_worker"
    ).start()


@pytest.mark.parametrize(
    ("actions", "codes", "reason"),
    [
        (["wait", "mistaken", "wait"], (2, 2, 2), "error: rank 1 on {host}: no such file"),
        (["mistaken", "mistaken"], (2, 2), "error: no such file"),
        (["wait", "mistaken early"], (2, 2), "error: rank 1 on {host}: no such file"),
        (["wait", "buggy"], (1, 1), "error: rank 1 on {host}: KeyError: 'a bug'"),
        (["wait", "done", "buggy"], (1, 0, 1), "error: rank 2 on {host}: KeyError: 'a bug'"),
    ],
)
def test_one_reason_from_one_rank(
    tmp_path: Path, actions: list[str], codes: tuple[int, ...], reason: str
) -> None:
    with job_of(tmp_path, *actions) as job:
        assert job.ends_with(*codes) == reason.format(host=socket.gethostname())
    assert job.log(0).read_text().endswith(f"{job.reasons[0]}\n"), "told where the user looks"


def test_done_is_done(tmp_path: Path) -> None:
    with job_of(tmp_path, "done", "done", "done") as job:
        assert job.wait() == [0, 0, 0]
    assert job.output == "joined\n" * 3


def test_who_does_not_come_is_named(tmp_path: Path) -> None:
    with job_of(tmp_path, "wait", "absent", "wait", seconds=4) as job:
        codes = [job.processes[rank].wait(30) for rank in (0, 2)]
        assert codes == [2, 2], job.output
        (reason,) = job.reasons
    host = socket.gethostname()
    assert reason.startswith("error: rank 1 did not come to 127.0.0.1:")
    assert f"within 0.0666667 minutes, ranks 0, 2 on {host} did" in reason


def test_a_first_rank_that_does_not_come_is_told_too(tmp_path: Path) -> None:
    with job_of(tmp_path, "absent", "wait", seconds=3) as job:
        assert job.processes[1].wait(30) == 2
        (reason,) = job.reasons
    assert "could not reach rank 0 at 127.0.0.1:" in reason
    assert "Traceback" not in job.output
    assert "frame #" not in job.output


@pytest.mark.parametrize("told", [[0], [1], [2, 1, 0]])
def test_a_stop_before_the_first_step_is_no_failure(tmp_path: Path, told: list[int]) -> None:
    """A rank may be deep in a long call, where no handler runs, or not be told at all: it hears of it from the first one."""
    with job_of(tmp_path, "wait", "wait", "wait") as job:
        job.wait_until(lambda: job.output.count("waits") == 3)
        for rank in told:
            job.processes[rank].send_signal(signal.SIGTERM)
        assert job.wait(10) == [STOPPED] * 3, job.output
    assert job.reasons == []
    assert job.output.count("stopped before the first step; the same command goes on\n") == 1
    assert "without a word" not in job.output


def test_a_stop_does_not_hide_why_a_rank_fails(tmp_path: Path) -> None:
    """A launcher tells all ranks to stop when one has failed; here before the first one, held up, has told the reason."""
    with job_of(tmp_path, "wait", "fails when told") as job:
        job.wait_until(lambda: job.output.count("waits") == 2)
        job.processes[0].send_signal(signal.SIGSTOP)
        job.processes[1].send_signal(signal.SIGUSR2)
        job.wait_until(lambda: "fails" in job.output)
        time.sleep(1)  # in which it sends the reason, and waits to be told to end
        job.processes[1].send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            job.processes[1].wait(0.5)
        job.processes[0].send_signal(signal.SIGCONT)
        assert "no such file" in job.ends_with(2, 2)


def test_a_first_rank_that_ends_before_its_line_can_be_drawn(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its store answers, and then is gone; or is there and nothing comes."""
    port = free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    message = r"rank 0 at 127\.0\.0\.1:\d+ has gone before this one could join it"
    serve = f"store = TCPStore('127.0.0.1', {port}, None, True, wait_for_workers=False)"
    code = f"from torch.distributed import TCPStore; import time; {serve}; time.sleep(2)"
    with (
        subprocess.Popen([sys.executable, "-c", code]),
        pytest.raises(UserError, match=message),
    ):
        heartbeat.join(1, 2, timeout=timedelta(seconds=20))
    store = heartbeat.TCPStore("127.0.0.1", port, None, True, wait_for_workers=False)
    with pytest.raises(UserError, match=message):
        heartbeat.join(1, 2, timeout=timedelta(seconds=1))
    del store
    assert "frame #" not in capfd.readouterr().err


def test_strangers_end_nothing(tmp_path: Path) -> None:
    """Whoever else connects to the first rank's ports; and a rank that is killed while it is stopped is found dead."""
    with job_of(tmp_path, "wait", "wait") as job:
        job.wait_until(lambda: job.output.count("joined") == 2)
        listening = [
            connection.laddr.port
            for connection in psutil.Process(job.processes[0].pid).net_connections("tcp")
            if connection.laddr and connection.status == psutil.CONN_LISTEN
        ]
        for port in listening:
            for words in (
                b"GET / HTTP/1.0\r\n\r\n",
                b'{"rank": 1, "host": "x", "token": "wrong"}\n',
                b"[]\n1\n",
            ):
                with socket.create_connection(("127.0.0.1", port)) as stranger:
                    stranger.sendall(words)
        os.kill(job.processes[1].pid, signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            job.processes[0].wait(3)
        job.processes[1].kill()
        assert "it was killed" in job.ends_with(1, -9)
