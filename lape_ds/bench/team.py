"""Counting on several ranks at once: processes of their own, each with its model and its share of the cores or its GPU.

Beside identify.py, which measures them. Ranks that count wait for nobody: what they take from each other is the machine.
"""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

import torch
import torch.multiprocessing as multiprocessing

from lape_ds.bench.shapes import Shape, build_model
from lape_ds.errors import UserError


class Team:
    """Ranks that do the same turn side by side.

    Example:
        with Team(shape, num_ranks=2, batches=4, seed=0) as team:
            team.turn("counting")  # until the last one has done it
    """

    def __init__(self, shape: Shape, *, num_ranks: int, batches: int, seed: int) -> None:
        """Starts nothing yet.

        Raises:
            UserError: There are GPUs, but fewer than ranks.
        """
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if 0 < gpus < num_ranks:
            raise UserError(
                f"--ranks {num_ranks} needs as many GPUs, and torch finds {gpus}; take --ranks {gpus}"
            )
        self._arguments = (shape, num_ranks, batches, seed)
        self._num_ranks = num_ranks

    def __enter__(self) -> Self:
        spawn = multiprocessing.get_context("spawn")
        self._lines, self._processes = [], []
        for rank in range(self._num_ranks):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(rank, theirs, *self._arguments), daemon=True)
            process.start()
            theirs.close()
            self._lines.append(ours)
            self._processes.append(process)
        self._hear_all()
        return self

    def turn(self, name: str) -> None:
        """Every rank goes through its blocks once, in the way of that name."""
        for line in self._lines:
            line.send(name)
        self._hear_all()

    def _hear_all(self) -> None:
        for line in self._lines:
            line.recv()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line in self._lines:
            line.close()
        for process in self._processes:
            process.join(10)
            process.kill()


def _work(rank: int, line: Connection, shape: Shape, num_ranks: int, batches: int, seed: int) -> None:
    from lape_ds.bench.identify import random_blocks, ways

    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // num_ranks))
    model = build_model(shape, device, seed).eval()
    turns = ways(model, random_blocks(shape, batches * shape.batch_size, seed + rank), shape)
    line.send(None)
    try:
        while True:
            turns[line.recv()]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            line.send(None)
    except EOFError:  # the measurement is over
        return
