"""A training's ranks, each a process of its own that a test can harm: killed, stopped, given another environment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.processes import REPO, Rank, free_port, rank_environment, rank_server

TIME_LIMIT = 60.0  # that all ranks have after one has failed


class Job:
    """Ranks of a module, as a launcher would start them on hosts of one rank each.

    `environments` and `prefixes` (of the command) may be set by rank before `start`.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        *,
        world_size: int = 2,
        module: str = "lape_ds.training.main",
    ) -> None:
        self.folder, self.arguments, self.world_size, self.module = folder, arguments, world_size, module
        self.environments: list[dict[str, str]] = [{} for _ in range(world_size)]
        self.prefixes: list[list[str]] = [[] for _ in range(world_size)]
        self.processes: list[Rank | subprocess.Popen[bytes]] = []

    def start(self) -> Job:
        port = free_port()
        self.folder.mkdir(parents=True, exist_ok=True)
        for rank in range(self.world_size):
            environment = rank_environment(rank, self.world_size, port)
            environment |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}
            self.processes.append(self._start(rank, environment))
        return self

    def _start(self, rank: int, environment: dict[str, str]) -> Rank | subprocess.Popen[bytes]:
        """Forked from what is there already, unless it is to see other files or another environment than the others."""
        prefix, own = self.prefixes[rank], self.environments[rank]
        if not prefix and not own:
            return rank_server().start(
                self.module, self.arguments, environment=environment, log=self.log(rank)
            )
        command = [*prefix, sys.executable, "-m", self.module, *self.arguments]
        with self.log(rank).open("wb") as log:
            return subprocess.Popen(
                command, cwd=REPO, env=os.environ | environment | own, stdout=log, stderr=log
            )

    def ends_with(self, *codes: int) -> str:
        """The one line that the job tells of its end, after all ranks have ended in time with these exit codes."""
        assert (self.wait(), len(self.reasons)) == (list(codes), 1), self.output
        return self.reasons[0]

    def log(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.log"

    @property
    def output(self) -> str:
        return "".join(self.log(rank).read_text(errors="replace") for rank in range(self.world_size))

    @property
    def reasons(self) -> list[str]:
        """What the job says of its end, over all ranks."""
        return [line for line in self.output.splitlines() if line.startswith("error:")]

    def wait_until(self, there: Callable[[], bool], seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not there():
            assert all(process.poll() is None for process in self.processes), self.output
            assert time.monotonic() < until, self.output
            time.sleep(0.01)

    def wait(self, seconds: float = TIME_LIMIT) -> list[int]:
        """The ranks' exit codes; fails if one is still there after that time."""
        until = time.monotonic() + seconds
        return [process.wait(max(0.0, until - time.monotonic())) for process in self.processes]

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception: object) -> None:
        """Leaves no process behind, whatever a test has found."""
        for process in self.processes:
            process.kill()
            process.wait()


def own_mounts(*commands: str) -> list[str]:
    """Prefix of a command that sees its own mounts: what a host's local disk is to the other hosts."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    script = " && ".join([*commands, 'exec "$@"'])
    return ["unshare", "--mount", *user, "sh", "-c", script, "sh"]
