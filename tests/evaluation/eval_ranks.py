"""Starts `lape-ds eval` in processes that a test may harm, as a launcher would.

torch and the harness are imported once, by a server from which every process is forked.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

PATIENCE_S = 120.0
_PRELOADED = [
    "lape_ds.evaluation.command",
    "lape_ds.cli",
    "lape_ds.distributed.ranks",
    "tests.evaluation.eval_ranks",
]


def context() -> ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(_PRELOADED)
    return found


def run(
    work: Callable[..., None], arguments: Sequence[object], environment: dict[str, str], log: str
) -> None:
    """In the new process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.environ.update(environment)
    work(*arguments)


def command_line(*arguments: str) -> None:
    from lape_ds.cli import main

    sys.argv = ["lape-ds", *arguments]
    main()


@dataclass
class Job:
    """Ranks of one start; a single one is no rank."""

    folder: Path
    processes: list[BaseProcess] = field(default_factory=list)

    def start(self, work: Callable[..., None], *arguments: object, world_size: int = 1) -> Job:
        self.folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
        }
        for rank in range(world_size):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
            environment = shared | own if world_size > 1 else {}
            log = str(self.folder / f"rank-{rank}.log")
            process = context().Process(target=run, args=(work, arguments, environment, log))
            process.start()
            self.processes.append(process)
        return self

    @property
    def output(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("rank-*.log")))

    @property
    def errors(self) -> list[str]:
        assert "Traceback" not in self.output, self.output
        return [line for line in self.output.splitlines() if line.startswith("error:")]

    def wait_until(self, there: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_S
        while not there():
            assert all(process.is_alive() for process in self.processes), self.output
            assert time.monotonic() < until, self.output
            time.sleep(0.002)

    def end(self) -> list[int | None]:
        """The exit codes, after all have ended by themselves."""
        until = time.monotonic() + PATIENCE_S
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        assert None not in codes, self.output
        return codes
