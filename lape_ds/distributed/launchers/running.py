"""Launchers side by side, on this machine: a training's node, or the workers of a sweep.

After the nodes; a signal to us is passed on to them.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from os import environ
from pathlib import Path
from types import FrameType

from lape_ds.distributed.launchers.node import SECONDS_BETWEEN_LOOKS, STOP_SIGNALS
from lape_ds.distributed.stopping import STOPPED


def run_launchers(
    commands: Sequence[Sequence[str]],
    *,
    logs: Sequence[Path] | None = None,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[], None] = lambda: None,
) -> int:
    """Runs launchers side by side to their end; if one fails, the others are stopped.

    Each runs in a session of its own, out of the reach of Ctrl-C, and holds the end of a pipe from us: should we be killed, its
    ranks are told to stop.

    Args:
        commands: Of `node_command`.
        logs: Where each one's output goes; None: to ours.
        environment: What is added to the ranks' environment.
        watch: Called several times a second meanwhile.

    Returns:
        The exit code of the first that failed; else `STOPPED` if not all came to their end; else 0.
    """
    launchers: list[subprocess.Popen[bytes]] = []
    with ExitStack() as files:
        for number, command in enumerate(commands):
            output = None if logs is None else files.enter_context(logs[number].open("wb"))
            launcher = subprocess.Popen(
                command,
                env=environ | dict(environment or {}),
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
            launchers.append(files.enter_context(launcher))
        with stopping_on_signals(lambda: _stop(launchers)) as stopping:
            failed = 0  # what the first one to fail ended with; the others are stopped then, and end with something else
            while None in (codes := [launcher.poll() for launcher in launchers]):
                if not failed and (failed := next((code for code in codes if code), 0)):
                    _stop(launchers)
                watch()
                time.sleep(SECONDS_BETWEEN_LOOKS)
    # Dead of being stopped: still being started. What else goes wrong then, such as a checkpoint on a full disk, counts.
    harmless = (0, STOPPED, *([-signal.SIGTERM] if stopping or failed == STOPPED else []))
    ended = [failed, *(code or 0 for code in codes)]
    return next((code for code in ended if code not in harmless), STOPPED if any(ended) else 0)


def _stop(launchers: Sequence[subprocess.Popen[bytes]]) -> None:
    for launcher in launchers:
        if launcher.poll() is None:
            launcher.terminate()


@contextmanager
def stopping_on_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Calls `stop` at each signal that asks us to stop; gives those that have come, a list that fills meanwhile."""
    came: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        came.append(number)
        stop()

    wanted = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, receive) for number in wanted}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
