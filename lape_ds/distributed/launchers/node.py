"""A job's processes on one node: `python -m lape_ds.distributed.launchers.node TOKEN JOB HOST`, and how they are stopped.

Started by the launcher on its own machine, by pdsh on others. Standard input is a dead man's handle: when the launcher or the
connection to it has gone it ends, and the ranks are told to stop.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import psutil

from lape_ds.distributed.launchers.job import NODE, Job, python_path
from lape_ds.distributed.stopping import STOPPED

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
SECONDS_BETWEEN_LOOKS = 0.1
# What is left to the ranks of a node when one has failed: to say why they end, not to finish a step without it.
_SECONDS_AFTER_FAILURE = 10.0
# Before that they are not even told: who hears of a failure by the heartbeat says which it was, and ends by itself.
SECONDS_FOR_REASON = 2.0


class Node:
    """The processes of one node, from their start to their end."""

    def __init__(self, job: Job, host: str) -> None:
        self.stopping = False
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, self._stop)
        command = [sys.executable, "-u", "-m", job.module, *job.arguments]
        inherited = os.environ | {"PYTHONPATH": python_path()}
        self._processes = [
            subprocess.Popen(command, env=inherited | environment, stdin=subprocess.DEVNULL)
            for environment in job.rank_environments(host)
        ]
        self._handle = _HandleHeld()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def run(self) -> int:
        """Waits for all of them; if one fails the others are ended.

        Returns:
            The code of the first that failed; else `STOPPED` if not all came to their end; else 0.
        """
        told, failed, failed_at = False, 0, math.inf
        while self._running():
            self._handle.wait(SECONDS_BETWEEN_LOOKS)
            self.stopping |= self._handle.lost
            if failed_at == math.inf and ((failed := self._failure()) or self._lost_one()):
                failed_at = time.monotonic()
            since_failure = time.monotonic() - failed_at
            if not told and (self.stopping or since_failure > SECONDS_FOR_REASON):
                told = True
                for process in self._running():
                    process.send_signal(signal.SIGTERM)
            if since_failure > _SECONDS_AFTER_FAILURE:
                self._kill()
        for number in STOP_SIGNALS:  # one that comes now must not change the code that we end with
            signal.signal(number, signal.SIG_IGN)
        if failed_at == math.inf:
            failed = self._failure()
        return failed or (STOPPED if any(process.returncode for process in self._processes) else 0)

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self._processes if process.poll() is None]

    def _failure(self) -> int:
        """The first code that is neither an end nor the end of a rank told to stop, as a shell gives it; 0 if there is none."""
        codes = [process.returncode or 0 for process in self._processes]
        harmless = (0, STOPPED, *([-signal.SIGTERM] if self.stopping else []))
        failed = next((code for code in codes if code not in harmless), 0)
        return 128 - failed if failed < 0 else failed

    def _lost_one(self) -> bool:
        """Whether a rank died of being told to stop, as one does that still starts; others may be waiting for it for ever."""
        return self.stopping and any(process.returncode == -signal.SIGTERM for process in self._processes)

    def _kill(self) -> None:
        """Ends what is left, with all that it has started."""
        for process in self._running():
            with suppress(psutil.NoSuchProcess):  # has just ended
                for one in [
                    *psutil.Process(process.pid).children(recursive=True),
                    psutil.Process(process.pid),
                ]:
                    one.kill()


class _HandleHeld:
    """Whether somebody still holds the other end of standard input."""

    def __init__(self) -> None:
        self.lost = False
        # At its end from the beginning (`ssh -n`, `< /dev/null`): nobody holds it, and its end says nothing.
        self._watched = not self._at_end(0.0)

    def wait(self, seconds: float) -> None:
        """Waits so long, or until the handle is lost."""
        if self._watched and not self.lost:
            self.lost = self._at_end(seconds)
        else:
            time.sleep(seconds)

    @staticmethod
    def _at_end(seconds: float) -> bool:
        readable, _, _ = select.select([0], [], [], seconds)
        return bool(readable) and os.read(0, 1024) == b""


def stop_nodes(token: str) -> None:
    """Tells this machine's nodes of one job to stop, and nobody else: the token is a word of their command lines."""
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [])[1:4] == ["-m", NODE, token]:
            with suppress(psutil.NoSuchProcess):  # has just ended
                process.send_signal(signal.SIGTERM)


def main(arguments: Sequence[str]) -> int:
    """`TOKEN JOB HOST` runs a node's processes; `--stop TOKEN` stops a job's nodes on this machine."""
    if arguments[0] == "--stop":
        stop_nodes(arguments[1])
        return 0
    _, job, host = arguments
    return Node(Job.decoded(job), host).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
