"""One job to a folder: of a run, or of an identification.

Part of set-up; the first rank holds the lock until its process ends, however it ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from lape_ds.errors import UserError
from lape_ds.writing import told_if_unwritable

_SECONDS_FOR_THE_DEAD = (
    180.0  # NFS frees a dead host's locks when its lease ends, after 90 s as most servers are set up
)


def take_lock(folder: Path, *, instead: str) -> IO[str]:
    """Makes a folder this job's own, as long as the file returned stays open; it lies beside the folder.

    The file says who has it. Between hosts it works where the network filesystem passes locks on (NFS does unless mounted with
    `local_lock`); where there are no locks at all, a warning says so.

    Args:
        folder: Which.
        instead: What the user may do in place of waiting, e.g. "set another train.run_name".

    Raises:
        UserError: Another job has it.
    """
    path = folder.parent / f".{folder.name}.lock"
    with told_if_unwritable(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("a+", encoding="utf-8")  # not "w": that would empty the holder's
    until = time.monotonic() + (_SECONDS_FOR_THE_DEAD if _began_before() else 0.0)
    while not _try_lock(lock, path):
        if time.monotonic() >= until:
            with lock:
                lock.seek(0)
                holder = " ".join(lock.read().split())
            raise UserError(
                f"another process is at work in {folder}{holder and f' ({holder})'}; wait for it, or {instead}"
            )
        time.sleep(1.0)
    with told_if_unwritable(str(path)):
        lock.truncate(0)
        lock.write(f"{_this_job()}\n")
        lock.flush()
    return lock


def _try_lock(lock: IO[str], path: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
        print(
            f"warning: the filesystem of {path} has no locks ({error.strerror}): nothing keeps a second job from working there",
            file=sys.stderr,
        )
    return True


def _began_before() -> bool:
    """Whether a scheduler has started this very job before: the holder may be its own dead first try."""
    return any(
        int(os.environ.get(name, "0")) > 0 for name in ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")
    )


def _this_job() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return (
        f"process {os.getpid()} on {socket.gethostname()}{f', Slurm job {job}' if job else ''}, since {since}"
    )
