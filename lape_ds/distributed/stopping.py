"""When a run must stop before its end: signals and Slurm's time limit. Needs no torch.

Beside the loop, which asks at every step boundary and agrees with the other ranks. Nothing collective happens in a handler.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

# Exit code of a run that is to go on: the same command does, and what comes after training must not take it for a
# finished one. As the shell's for Ctrl-C.
STOPPED = 130

_LEAST_MARGIN_S = 120.0
_STEPS_OF_MARGIN = 3


class StopRequest:
    """Remembers SIGTERM, SIGINT and SIGUSR1, and knows when a Slurm job runs out of time (SLURM_JOB_END_TIME).

    The handlers are in place as long as its `with` block lasts. Until `begin_steps` there is nothing to keep, and a signal
    ends the process at once with `STOPPED`: set-up may take hours where text is packed, and packing goes on where it was.
    Other ranks are told first (`tell_early`, which ends this process if there are any), or they would take this one for dead.

    Slurm's own warning (`--signal=USR1@120`) and its limit ask for the same thing; whichever comes first counts.
    """

    def __init__(
        self, early: Callable[[], str] = lambda: "before the first step; the same command goes on"
    ) -> None:
        """Listens to nothing yet.

        Args:
            early: Asked when a signal ends the process at once: what is told behind `stopped`.
        """
        self._early = early
        end = os.environ.get("SLURM_JOB_END_TIME")  # seconds since 1970; absent outside Slurm
        self._end = None if end is None else float(end)
        self._signal: signal.Signals | None = None
        self._steps_begun = False
        self.tell_early: Callable[[str], None] | None = None
        self._longest = 0.0

    def __enter__(self) -> Self:
        wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        self._before = {number: signal.signal(number, self._receive) for number in wanted}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        if not self._steps_begun:
            # A launcher passes on Ctrl-C as SIGTERM: only Slurm's own signal has a name that tells the user something.
            cause = "SIGUSR1: " if self._signal == signal.SIGUSR1 else ""
            text = f"{cause}stopped {self._early()}"
            if self.tell_early is not None:
                self.tell_early(text)
            if os.environ.get("RANK", "0") == "0":
                print(text, file=sys.stderr)
            sys.stderr.flush()
            os._exit(STOPPED)

    def begin_steps(self) -> None:
        """From now on there is something to keep."""
        self._steps_begun = True

    def saw_step(self, seconds: float) -> None:
        """Tells how long it took from one boundary to the next, measuring and saving included."""
        self._longest = max(self._longest, seconds)

    @property
    def margin_s(self) -> float:
        """How long before the time limit to stop: room for one more step and its checkpoint."""
        return max(_LEAST_MARGIN_S, _STEPS_OF_MARGIN * self._longest)

    @property
    def reason(self) -> str | None:
        """Why this rank wants to stop; None if it does not."""
        if self._signal is not None:
            return self._signal.name
        if self._end is not None and self._end - time.time() < self.margin_s:
            return "the job's time limit"
        return None
