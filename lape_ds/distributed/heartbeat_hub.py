"""The first rank's side of the heartbeat: it hears every rank, decides on the one reason for an end, and tells it.

Below heartbeat.py, which every rank has.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, NoReturn

# A host is given up when it has not answered for 10 + 4 x 10 seconds; a cable that is out for less ends no training.
_PROBES = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 4))
# How long the first rank listens on before it calls a reason the reason.
_SECONDS_FOR_THE_SAME = 0.5  # for ranks that fail alike: it is told once, and not as one rank's own
SECONDS_FOR_MORE_LOST = 0.2  # not a second: the launcher looks that often, and ends who is to tell of it
_SECONDS_FOR_A_CAUSE = 5.0  # a broken collective is another rank's fault, of which more is to come
_SECONDS_TO_TELL = 5.0  # that ranks have to hear of it
_SECONDS_TO_COME = 30.0  # that ranks have to come and hear of it, while the job is starting


@dataclass(frozen=True)
class Event:
    """What happened to a rank."""

    rank: int
    kind: str  # failed: by itself; lost: dead without a word, or never come; cut: left alone in a collective; stopped: by signal
    code: int
    text: str
    trace: str = ""


def keep_alive(connection: socket.socket) -> None:
    """Has the kernel ask a TCP connection's other end whether it is still there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _PROBES:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


class Line:
    """Messages over a socket: a JSON object a line."""

    def __init__(self, connection: socket.socket, rank: int | None = None) -> None:
        self.connection = connection
        self.rank = rank  # of the other end; None until it has said so
        self._received = b""
        if connection.family != socket.AF_UNIX:
            keep_alive(connection)
        # A forked child (of a data loader) would hold the line open when this process is dead.
        os.register_at_fork(after_in_child=connection.close)

    def send(self, **message: Any) -> None:
        """Sends one message."""
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """The next messages; waits for some.

        Raises:
            OSError: The line has ended.
        """
        piece = self.connection.recv(1 << 16)
        if not piece:
            raise ConnectionResetError("closed")
        *lines, self._received = (self._received + piece).split(b"\n")
        return [json.loads(line) for line in lines]


class Hub(threading.Thread):
    """In the first rank's process, the other end of all lines."""

    def __init__(self, world_size: int, own: socket.socket) -> None:
        super().__init__(name="heartbeat-hub", daemon=True)
        self.token = secrets.token_hex(16)  # else whoever finds the port could end the training
        self._hosts = {0: socket.gethostname()}
        self._lines = {0: Line(own, 0)}
        self._world_size = world_size
        self._left: set[int] = set()
        self._events: list[Event] = []
        self._since = 0.0  # when the first of them came
        self._late = _SECONDS_TO_COME
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        backlog = min(world_size, 4096)
        self._listener = socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=backlog)
        os.register_at_fork(after_in_child=self._listener.close)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(own, selectors.EVENT_READ, self._lines[0])

    @property
    def port(self) -> int:
        """Where ranks draw their lines to."""
        return self._listener.getsockname()[1]

    def who_is_missing(self, timeout: timedelta) -> str:
        """What to tell when ranks have not come in time."""
        self._late = 0.0  # they have had their time
        came = sorted(self._lines)
        missing = [rank for rank in range(self._world_size) if rank not in came]
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        hosts = [self._hosts.get(rank, "") for rank in range(self._world_size)]
        return (
            f"{_numbers(missing)} did not come to {where} within {in_minutes(timeout)}, {name_ranks(came, hosts)} did: see on "
            "the other hosts whether they started and can reach that name and port (launch.timeout_minutes sets how long to wait)"
        )

    def run(self) -> None:
        """Serves until the first rank has done its work, or the job ends."""
        while self._events or 0 not in self._left:
            self._hear_all(
                None if not self._events else max(0.0, self._since + self._patience() - time.monotonic())
            )
            if self._events and time.monotonic() >= self._since + self._patience():
                self._end(self._cause())
        for rank in set(self._lines) - self._left:
            with suppress(OSError):
                self._lines[rank].send(bye=True)
        self._listener.close()

    def _hear_all(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                connection, _ = self._listener.accept()
                self._selector.register(connection, selectors.EVENT_READ, Line(connection))
            else:
                self._hear(key.data)

    def _hear(self, line: Line) -> None:
        try:
            messages = line.receive()
            if line.rank is None:
                messages = self._admit(line, messages)
        except (OSError, ValueError, LookupError, TypeError) as error:  # also of a stranger's words
            self._selector.unregister(line.connection)
            line.connection.close()
            if line.rank is not None and line.rank not in self._left:
                self._left.add(line.rank)
                self._add(Event(line.rank, "lost", 1, lost_text(error, self._who([line.rank]))))
            return
        for message in messages:
            if "bye" in message:
                self._left.add(line.rank or 0)
            else:
                self._add(Event(**message))

    def _admit(self, line: Line, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Learns who a new line is of; returns what came after that."""
        if messages:
            hello, *messages = messages
            if not secrets.compare_digest(hello["token"], self.token):
                raise ValueError("not of this job")
            line.rank = int(hello["rank"])
            self._lines[line.rank] = line
            self._hosts[line.rank] = hello["host"]
            if len(self._lines) == self._world_size:
                hosts = [self._hosts[rank] for rank in range(self._world_size)]
                for one in self._lines.values():
                    with suppress(OSError):  # has just died, of which there is more to hear
                        one.send(hosts=hosts)
        return messages

    def _add(self, event: Event) -> None:
        if event.rank not in {known.rank for known in self._events}:
            # A death or a failure after broken collectives is what broke them: from now on it is waited for others alike.
            if self._events == [] or (event.kind != "cut" and self._cause().kind == "cut"):
                self._since = time.monotonic()
            self._events.append(event)

    def _cause(self) -> Event:
        return next((event for event in self._events if event.kind != "cut"), self._events[0])

    def _patience(self) -> float:
        if len(self._events) == self._world_size:
            return 0.0
        return {
            "failed": _SECONDS_FOR_THE_SAME,
            "lost": SECONDS_FOR_MORE_LOST,
            "stopped": SECONDS_FOR_MORE_LOST,
            "cut": _SECONDS_FOR_A_CAUSE,
        }[self._cause().kind]

    def _end(self, cause: Event) -> NoReturn:
        """Prints the reason, tells it to all who are there or still come, and ends the first rank with them."""
        alike = [event for event in self._events if (event.kind, event.text) == (cause.kind, cause.text)]
        who = [event.rank for event in alike]
        whose = self._who(who) + ": "
        # Of a job on one host, what the first rank refuses for all is no matter of a rank or a host.
        by_first = who == [0] and cause.code == 2 and len(set(self._hosts.values())) == 1
        if cause.kind in ("lost", "stopped") or len(alike) == self._world_size or by_first:
            whose = ""
        # The longest: where ranks raise what one of them has found (`together`), its own says where.
        trace = max((event.trace for event in alike), key=len)
        tell_event(whose + cause.text, replace(cause, trace=trace))
        told, since = {0}, time.monotonic()
        while True:
            for rank in set(self._lines) - told:
                told.add(rank)
                with suppress(OSError):
                    self._lines[rank].send(code=cause.code)
            waited = _SECONDS_TO_TELL if set(self._lines) - self._left - {0} else 0.0
            if len(self._lines) < self._world_size:
                # Who is told to stop before it has come needs no word of ours.
                waited = max(
                    waited, min(self._late, _SECONDS_TO_TELL) if cause.kind == "stopped" else self._late
                )
            if time.monotonic() >= since + waited:
                os._exit(cause.code)
            self._hear_all(0.1)

    def _who(self, ranks: list[int]) -> str:
        return name_ranks(ranks, [self._hosts.get(rank, "") for rank in range(self._world_size)])


def tell_event(text: str, event: Event) -> None:
    """One line (for our own fault, its traceback before it); being stopped is no error."""
    tell(text if event.kind == "stopped" else f"{event.trace}error: {text}")


def tell(text: str) -> None:
    """Writes to stderr, past a buffer whose lock a blocked thread may hold."""
    data = f"{text}\n".encode(errors="backslashreplace")
    with suppress(OSError):  # nobody reads any more
        while data:
            data = data[os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, data) :]


def lost_text(error: BaseException, who: str) -> str:
    """What to tell of ranks whose line has ended so."""
    if isinstance(error, TimeoutError):
        return f"{who} answers no more: its host or the network to it is down"
    return (
        f"{who} has ended without a word: it was killed, or ran out of memory (the kernel's log there tells)"
    )


def _numbers(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {shown}"


def name_ranks(ranks: list[int], hosts: list[str]) -> str:
    """E.g. `ranks 2, 3 on n2`; `hosts` are those of all ranks."""
    there = list(dict.fromkeys(hosts[rank] for rank in ranks))
    shown = ", ".join(there[:4]) + (f" and {len(there) - 4} more hosts" if len(there) > 4 else "")
    return f"{_numbers(ranks)} on {shown}"


def in_minutes(timeout: timedelta) -> str:
    """E.g. `10 minutes`."""
    return f"{timeout.total_seconds() / 60:g} minutes"
