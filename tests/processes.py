"""Starts real ranks (gloo, this machine) for tests, and ends them all when one fails."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
# Also where there is a GPU: the same numbers, and as many ranks as a test wants.
_ON_CPU = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class RankServer:
    """The process that ranks are forked from (rank_server.py)."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.rank_server"],
            cwd=REPO,
            env=os.environ | _ON_CPU,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        largest_file: int | None = None,
    ) -> Rank:
        """One rank; what it prints is appended to `log`, and it can write no file larger than `largest_file` bytes."""
        request: dict[str, Any] = {"module": module, "arguments": list(arguments), "log": str(log)}
        request["environment"] = {**os.environ, **_ON_CPU, **environment}
        if largest_file is not None:
            request["largest_file"] = largest_file
        log.touch()
        return Rank(self, self.ask(request), log)

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        assert reply, "the rank server has died"
        return json.loads(reply)

    def close(self) -> None:
        self._process.communicate(timeout=30)  # closes its stdin, by which it ends


@functools.cache
def rank_server() -> RankServer:
    """This test process's own, from the first time that it is wanted; tests/conftest.py closes it."""
    return RankServer()


@dataclass
class Rank:
    """One process that the server has forked, to be used like a `Popen`."""

    server: RankServer
    pid: int
    log: Path
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.server.ask({"poll": self.pid})
        return self.code

    def wait(self, timeout: float = 300) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() >= until:
                raise subprocess.TimeoutExpired(f"rank {self.pid}", timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:  # until it is polled again its id is its own, dead or alive
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def run_ranks(module: str, args: Sequence[str], *, world_size: int, timeout: float = 300) -> None:
    """Runs `python -m module args…` once per rank and waits; fails with the first failing rank's output."""
    ends = ends_of_ranks(module, args, world_size=world_size, timeout=timeout)
    codes = [code for code, _ in ends]
    # Of those that did not end by themselves, -9, one would only say that it was killed.
    worst = next((n for n, code in enumerate(codes) if code not in (0, -9)), 0)
    assert not any(codes), f"exit codes {codes}; rank {worst}:\n{ends[worst][1][-4000:]}"


def ends_of_ranks(
    module: str, args: Sequence[str], *, world_size: int, timeout: float = 300
) -> list[tuple[int, str]]:
    """The exit code of each rank, and what it has printed; when one has failed, or the time is over, the others are killed."""
    port = free_port()
    with tempfile.TemporaryDirectory() as logs:
        ranks = [
            rank_server().start(
                module,
                args,
                environment=rank_environment(rank, world_size, port),
                log=Path(logs, f"rank-{rank}.log"),
            )
            for rank in range(world_size)
        ]
        _wait(ranks, timeout)
        return [(rank.wait(), rank.log.read_text(errors="replace")) for rank in ranks]


def _wait(ranks: Sequence[Rank], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    try:
        while None in (codes := [rank.poll() for rank in ranks]) and time.monotonic() < deadline:
            if any(codes):  # one failed: the others would wait for it
                break
            time.sleep(0.02)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
