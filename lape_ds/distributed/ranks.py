"""The ranks of a job: start, what they must agree on, end.

Beside the loop. Every function here but `fail`, `tell_stopped` and those that give a rank's numbers is collective: all ranks must
enter it. `join`, `meet` and `end` need no process group.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lape_ds.distributed import heartbeat
from lape_ds.distributed.launchers.job import free_port
from lape_ds.errors import Diverged, UserError, first_line

Result = TypeVar("Result")

# A dead rank is known without it (heartbeat.py): it must be longer than what one rank may do while others wait, such as writing.
_COLLECTIVE_TIMEOUT = timedelta(hours=2)
_TIME_TO_TELL = timedelta(seconds=30)
_SECONDS_BETWEEN_LOOKS = 0.1

# What a launcher says of a single rank.
_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}

_heartbeat: heartbeat.Heartbeat | None = None
_names_itself = False  # whether this process, not a launcher, has put these names into its environment
_meetings = count()


def rank() -> int:
    """Number of this process; known before the process group is."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Number of this process on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def ranks_here() -> int:
    """Number of processes of this node: as torchrun, Slurm and our launcher say it, or DeepSpeed's."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))


def join(timeout_minutes: float = 10) -> None:
    """Waits until all ranks have come; from here on all of them end when one fails. Nothing to do for a single rank.

    Args:
        timeout_minutes: How long to wait.

    Raises:
        UserError: The first rank cannot be reached. If others do not come, the job ends with a line that names them.
    """
    global _heartbeat
    if _heartbeat is None and world_size() > 1:
        timeout = timedelta(minutes=timeout_minutes)
        _heartbeat = heartbeat.join(rank(), world_size(), timeout=timeout)
        _heartbeat.wait_for_all(timeout)


def fail(error: BaseException) -> NoReturn:
    """Ends a job of several ranks for this one's error: one line from one rank, and all end with its exit code."""
    global _heartbeat
    if _heartbeat is None:
        try:
            _heartbeat = heartbeat.join(rank(), world_size(), timeout=_TIME_TO_TELL)
        except UserError:  # there is nobody to tell
            heartbeat.fail_alone(rank(), error)
    _heartbeat.fail(error)


def tell_stopped(text: str) -> None:
    """Tells all ranks that a signal asks this one to stop, and ends with them; nothing if no others are known. For handlers."""
    if _heartbeat is not None:
        _heartbeat.stop(text)


def start() -> None:
    """Joins the process group (a group of one when started without a launcher).

    Raises:
        UserError: The first rank cannot listen on the port.
    """
    name_accelerator()
    global _names_itself
    import deepspeed  # seconds, which ranks that do not train have no use for

    join()
    if "RANK" not in os.environ:
        os.environ.update({**_ALONE, "MASTER_PORT": str(free_port())})
        _names_itself = True
    take_device()
    # It asks this table for one thing, a shared-memory reduction for CPU ranks, and would compile it here: a C++ compiler, half a
    # minute, and nothing gained at the sizes one trains on a CPU. Left to itself it fills the table by test compilations.
    deepspeed.ops.__compatible_ops__ = {}  # type: ignore[attr-defined]
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        deepspeed.init_distributed(backend, timeout=_COLLECTIVE_TIMEOUT, verbose=False)
    except dist.DistNetworkError as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"rank {rank()} cannot join the others at {where} ({first_line(error)}); is the port taken, or the address not to be "
            "reached from this node? give others with --master_addr and --master_port"
        ) from None


def name_accelerator() -> None:
    """Before DeepSpeed is imported: it would guess, and take a machine without a GPU for one of some other kind."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")


def take_device() -> None:
    """This rank's GPU, or its share of the cores: all that a rank without a process group needs. Not collective."""
    share_cores()
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())


def publish(key: str, value: str) -> None:
    """Lays a word down for the other ranks; on the first rank, after `join`."""
    assert _heartbeat is not None
    _heartbeat.store.set(heartbeat.store_key(key), value)


def published(key: str) -> str:
    """The word that the first rank lays down, as soon as it has; after `join`. However long that takes: who is dead is known."""
    assert _heartbeat is not None
    name = heartbeat.store_key(key)
    # The store's own waiting ends at the time that ranks have to come, in which the first one may still be fetching data.
    while not _heartbeat.store.check([name]):
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return _heartbeat.store.get(name).decode()


def meet(value: Any = None) -> list[Any]:
    """What every rank brings (JSON), in their order, as soon as all have come; after `join`.

    However long that takes: who is dead is known. A rank that raises instead of coming ends the job for all (`fail`).
    """
    if world_size() == 1:
        return [value]
    assert _heartbeat is not None
    store, number = _heartbeat.store, next(_meetings)
    came, left = (
        [heartbeat.store_key(f"meeting-{number}/{one}/{what}") for one in range(world_size())]
        for what in ("came", "left")
    )
    store.set(came[rank()], json.dumps(value))
    _wait_for(came)
    values = [json.loads(store.get(name)) for name in came]
    store.set(left[rank()], "")
    if rank() == 0:  # who serves the store, and may end next, leaves last
        _wait_for(left)
    return values


def _wait_for(names: list[str]) -> None:
    assert _heartbeat is not None
    while not _heartbeat.store.check(names):
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def share_cores() -> None:
    """Without a GPU the ranks of a node share its cores; each taking all of them is several times slower."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        own = os.environ.get(
            "SLURM_CPUS_PER_TASK"
        )  # to which Slurm may bind a task, so that it sees no others
        torch.set_num_threads(int(own) if own else max(1, len(os.sched_getaffinity(0)) // ranks_here()))


def end() -> None:
    """Leaves the process group; without this, ZeRO-3 aborts at exit."""
    global _heartbeat, _names_itself
    if dist.is_initialized():
        dist.destroy_process_group()
    if _names_itself:  # or a later stage of this process would take itself for a launcher's rank
        for name in (*_ALONE, "MASTER_PORT"):
            os.environ.pop(name, None)
        _names_itself = False
    if _heartbeat is not None:
        _heartbeat.close()
        _heartbeat = None


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

    So that all may go on from what they agree on (a sweep from a run that has diverged). A rank that raises outside of this ends
    the job (`fail`).

    Raises:
        UserError: A rank raised that. All raise the same words, which name the rank unless all of them failed alike.
        Diverged: Likewise.
        RuntimeError: A rank raised something else.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as raised:  # whatever it is, the others must hear of it before it goes on
        error = raised
    reports = gather(None if error is None else _Report.of(error))
    failed = [report for report in reports if report is not None]
    if not failed:
        return result  # type: ignore[return-value]
    told = failed[0].text
    if len(failed) < len(reports) or len({report.text for report in failed}) > 1:
        told = f"rank {failed[0].rank} on {failed[0].host}: {told}"
    raise failed[0].kind(told) from error


@dataclass(frozen=True)
class _Report:
    """What a rank raised."""

    rank: int
    host: str
    kind: type[Exception]  # of what the others raise
    text: str

    @classmethod
    def of(cls, error: Exception) -> _Report:
        kind = next((kind for kind in (Diverged, UserError) if isinstance(error, kind)), RuntimeError)
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return cls(rank(), socket.gethostname(), kind, text)


def gather(value: Result) -> list[Result]:
    """What every rank gives, in their order; must be small."""
    values: list[Result | None] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


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
