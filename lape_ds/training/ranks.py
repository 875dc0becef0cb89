"""The ranks of a training: start, what they must agree on, end.

Beside the loop. Every function here but `rank` and `world_size` is collective: all ranks must enter it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from lape_ds.errors import Diverged, UserError, first_line
from lape_ds.training.launchers.job import free_port

Result = TypeVar("Result")


def rank() -> int:
    """Number of this process; known before the process group is."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Number of this process on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def start() -> None:
    """Joins the process group (a group of one when started without a launcher).

    Raises:
        UserError: The first rank cannot listen on the port.
    """
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT=str(free_port()))
    share_cores()
    # It asks this table for one thing, a shared-memory reduction for CPU ranks, and would compile it here: a C++ compiler, half a
    # minute, and nothing gained at the sizes one trains on a CPU. Left to itself it fills the table by test compilations.
    deepspeed.ops.__compatible_ops__ = {}  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    try:
        deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    except dist.DistNetworkError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"rank {rank()} cannot join the others at {where} ({first_line(error)}); is the port taken, or the address not to be "
            "reached from this node? give others with --master_addr and --master_port"
        ) from None


def share_cores() -> None:
    """Without a GPU the ranks of a node share its cores; each taking all of them is several times slower."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))
        own = os.environ.get(
            "SLURM_CPUS_PER_TASK"
        )  # Slurm may bind a task to these, so that it sees no others
        torch.set_num_threads(int(own) if own else max(1, len(os.sched_getaffinity(0)) // ranks_here))


def end() -> None:
    """Leaves the process group; without this, ZeRO-3 aborts at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """Ends this process without Python's own teardown, in which threads of gloo have been seen to abort after all was done.

    An abort there would make the launcher call a finished training failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def device() -> torch.device:
    """Where this rank computes."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def together(work: Callable[[], Result]) -> Result:
    """Runs `work` (which must not communicate) on every rank; if it fails on one, all ranks raise.

    A rank that raised alone would leave the others waiting in their next collective.

    Raises:
        UserError: Another rank failed; names it. On the failing rank, what `work` raised.
        Diverged: Another rank raised that.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as raised:  # whatever it is, the others must hear of it before it goes on
        error = raised
    reports: list[tuple[bool, str] | None] = [None] * world_size()
    mine = None if error is None else (isinstance(error, Diverged), f"{type(error).__name__}: {error}")
    dist.all_gather_object(reports, mine)
    if error is not None:
        raise error
    for number, report in enumerate(reports):
        if report is not None:
            diverged, told = report
            raise (Diverged if diverged else UserError)(f"rank {number} failed: {told}")
    return result  # type: ignore[return-value]


def by_first(work: Callable[[], Result]) -> Result:
    """Runs `work` on the first rank alone and gives its result to all; if it fails, all ranks raise."""
    result = [together(lambda: work() if rank() == 0 else None)]
    dist.broadcast_object_list(result, src=0)
    return result[0]  # type: ignore[return-value]


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, on the CPU."""
    on_device = values.to(device())
    dist.all_reduce(on_device)
    return on_device.cpu()
