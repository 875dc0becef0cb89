"""A rank that does what test_heartbeat.py says, by rank, and with nothing but the heartbeat: it starts in two seconds."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from types import FrameType

from lape_ds.distributed import heartbeat
from lape_ds.distributed.stopping import StopRequest
from lape_ds.errors import UserError


def main(action: str, seconds: float) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if action == "absent":
        time.sleep(60)
    timeout = timedelta(seconds=seconds)
    try:
        beat = heartbeat.join(rank, world_size, timeout=timeout)
    except UserError as error:
        heartbeat.fail_alone(rank, error)

    def fail(number: int, frame: FrameType | None) -> None:
        print("fails", flush=True)
        beat.fail(UserError("no such\nfile"))

    if action == "mistaken early":
        beat.fail(UserError("no such\nfile"))
    beat.wait_for_all(timeout)
    print("joined", flush=True)
    if action == "mistaken":
        beat.fail(UserError("no such\nfile"))
    if action == "buggy":
        beat.fail(KeyError("a bug"))
    if action == "done":
        beat.close()
        return
    with StopRequest() as stop:
        stop.tell_early = beat.stop
        if action == "fails when told":
            signal.signal(signal.SIGUSR2, fail)
        print("waits", flush=True)
        time.sleep(60)


if __name__ == "__main__":
    main(sys.argv[1 + int(os.environ["RANK"])], float(sys.argv[-1]))
