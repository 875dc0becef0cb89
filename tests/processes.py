"""Starts real ranks (gloo, this machine) for tests, and ends them all when one fails."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

REPO = Path(__file__).resolve().parents[1]


def run_ranks(module: str, args: Sequence[str], *, world_size: int, timeout: float = 300) -> None:
    """Runs `python -m module args…` once per rank and waits; fails with the first failing rank's output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ExitStack() as logs:
        processes: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        for rank in range(world_size):
            env = os.environ | _rank_environment(rank, world_size, port)
            log = logs.enter_context(tempfile.TemporaryFile())  # not a pipe: no rank may wait for its reader
            command = [sys.executable, "-m", module, *args]
            processes.append((subprocess.Popen(command, cwd=REPO, env=env, stdout=log, stderr=log), log))
        _wait(processes, timeout)
        for rank, (process, log) in enumerate(processes):
            log.seek(0)
            output = log.read().decode(errors="replace")
            assert process.returncode in (0, -9), f"rank {rank}: exit {process.returncode}\n{output[-4000:]}"
        killed = [rank for rank, (process, _) in enumerate(processes) if process.returncode]
        assert not killed, f"ranks {killed} did not end within {timeout} s"


def _wait(processes: list[tuple[subprocess.Popen[bytes], IO[bytes]]], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process, _ in processes) and time.monotonic() < deadline:
            if any(process.poll() for process, _ in processes):  # one failed: the others would wait for it
                break
            time.sleep(0.05)
    finally:
        for process, _ in processes:
            process.kill()
            process.wait()


def _rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
