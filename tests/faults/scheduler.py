"""Trainings as a scheduler has them: jobs of real ranks that are started, watched, signalled and killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lape_ds.recipe import load_recipe
from lape_ds.training.metrics import read_metrics
from tests.processes import REPO

PATIENCE_S = 120.0
# A launcher ends the ranks that a dead one leaves behind; ours would be waiting for it.
SECONDS_TO_END = 1.0


class RankServer:
    """The process that ranks are forked from (rank_server.py)."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.rank_server"],
            cwd=REPO,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

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


@dataclass
class Rank:
    """One process of a job."""

    server: RankServer
    pid: int
    log: Path
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.server.ask({"poll": self.pid})
        return self.code

    def send(self, number: signal.Signals) -> None:
        if self.poll() is None:  # until it is polled again its id is its own, dead or alive
            os.kill(self.pid, number)


@dataclass
class Job:
    """All ranks of one start."""

    ranks: list[Rank]
    run_dir: Path

    def wait_for(self, condition: Callable[[], bool], *, every: float = 0.002) -> None:
        """Fails if a rank ends before the condition holds."""
        deadline, looked = time.monotonic() + PATIENCE_S, 0.0
        while not condition():
            if time.monotonic() - looked > 0.1:
                looked = time.monotonic()
                assert all(rank.poll() is None for rank in self.ranks), self.output()
                assert looked < deadline, self.output()
            time.sleep(every)

    def end(self) -> list[int | None]:
        """Waits for all ranks to end by themselves; their exit codes."""
        deadline = time.monotonic() + PATIENCE_S
        while any(rank.poll() is None for rank in self.ranks):
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.01)
        return [rank.code for rank in self.ranks]

    def kill(self, victim: int) -> None:
        """SIGKILLs one rank, and does with the others what a launcher does: SIGTERM, then SIGKILL."""
        self.ranks[victim].send(signal.SIGKILL)
        self.end_others()

    def end_others(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for rank in self.ranks:
                rank.send(number)
            deadline = time.monotonic() + SECONDS_TO_END
            while any(rank.poll() is None for rank in self.ranks) and time.monotonic() < deadline:
                time.sleep(0.005)
        assert all(rank.poll() is not None for rank in self.ranks)

    def output(self) -> str:
        return "\n".join(f"rank {n}:\n{rank.log.read_text()[-4000:]}" for n, rank in enumerate(self.ranks))

    def lines(self, start: str) -> list[str]:
        """What the ranks wrote that begins so, the first one's first; no traceback may be among it."""
        assert "Traceback" not in self.output(), self.output()
        texts = [rank.log.read_text() for rank in self.ranks]
        return [line for text in texts for line in text.splitlines() if line.startswith(start)]


@dataclass
class Jobs:
    """Starts the jobs of one test, with logs of their own, and ends what is left of them."""

    server: RankServer
    recipe: Path
    logs: Path
    started: list[Job] = field(default_factory=list)

    def start(
        self,
        *overrides: str,
        world_size: int = 1,
        environment: dict[str, str] | None = None,
        largest_file: int | None = None,
    ) -> Job:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        own = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **(environment or {})}
        ranks = []
        for number in range(world_size):
            log = self.logs / f"job-{len(self.started)}-rank-{number}.log"
            request: dict[str, Any] = {"arguments": [str(self.recipe), *overrides], "log": str(log)}
            request["environment"] = own | {"RANK": str(number), "LOCAL_RANK": str(number)}
            if largest_file is not None:
                request["largest_file"] = largest_file
            log.touch()
            ranks.append(Rank(self.server, self.server.ask(request), log))
        self.started.append(Job(ranks, load_recipe(str(self.recipe), list(overrides)).run_dir))
        return self.started[-1]

    def run(self, *overrides: str, world_size: int = 1) -> Path:
        """Trains to the end; the run folder."""
        job = self.start(*overrides, world_size=world_size)
        assert job.end() == [0] * world_size, job.output()
        return job.run_dir

    def stop_after(self, step: int, *overrides: str, world_size: int = 1) -> Path:
        """Trains until a step is done, then asks all ranks to stop, as a scheduler does."""
        job = self.start(*overrides, world_size=world_size)
        job.wait_for(lambda: last_step(job.run_dir) >= step)
        for rank in job.ranks:
            rank.send(signal.SIGTERM)
        codes = job.end()
        assert set(codes) == {130}, job.output()
        return job.run_dir

    def close(self) -> None:
        for job in self.started:
            job.end_others()


def last_step(run_dir: Path) -> int:
    """The last training step in the metrics, 0 if there is none."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return 0
    return max((line["step"] for line in read_metrics(path)), default=0)


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """All lines, without what the clock says."""
    clock = ("seconds", "tokens_per_second", "heldout_seconds")
    return [
        {key: value for key, value in line.items() if key not in clock}
        for line in read_metrics(run_dir / "metrics.jsonl")
    ]


def losses_of(run_dir: Path) -> list[float]:
    return [line["loss"] for line in metrics_of(run_dir) if "loss" in line]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(run_dir: Path, undisturbed: Path, *, steps: Sequence[int]) -> None:
    """No line of metrics is missing, twice or different, and the last checkpoint has the same bits."""
    assert [line["step"] for line in metrics_of(run_dir) if "loss" in line] == list(steps)
    assert metrics_of(run_dir) == metrics_of(undisturbed)
    last = f"checkpoints/step-{steps[-1]:08d}"
    found, expected = (contents(folder / last) for folder in (run_dir, undisturbed))
    assert len(expected) >= 2
    assert found == expected
