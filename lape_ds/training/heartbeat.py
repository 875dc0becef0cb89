"""A line from every rank to the first one, by which all of them learn at once that one has failed, and why.

Beside the process group, in which ranks wait for a dead one until a time-out. A rank that fails says so before it ends; one that
is killed has its line closed by the kernel; of a host that is gone, the kernel's own probes (TCP keepalive) go unanswered. The
first rank prints the one reason, tells the others, and all leave, from a thread, whatever their main threads are blocked in.

Nobody sends beats from Python: a process that is stopped, or whose interpreter is held by a long call, answers the kernel's
probes all the same, so what is slow is never taken for dead.
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
import traceback
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist

from lape_ds.errors import UserError

# A host is given up when it has not answered for 10 + 4 x 10 seconds; a cable that is out for less ends no training.
_PROBES = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 4))
# How long the first rank listens on before it calls a reason the reason.
_SECONDS_FOR_THE_SAME = 0.5  # for ranks that fail alike: it is told once, and not as one rank's own
_SECONDS_FOR_MORE_LOST = 0.2  # not a second: the launcher looks that often, and ends who is to tell of it
_SECONDS_FOR_A_CAUSE = 5.0  # a broken collective is another rank's fault, of which more is to come
_SECONDS_TO_TELL = 5.0  # that ranks have to hear of it
_SECONDS_TO_COME = 30.0  # that ranks have to come and hear of it, while the job is starting
_SECONDS_TO_ANSWER = 40.0  # after which a failed rank tells its reason itself

_INTERRUPTED = 130


@dataclass(frozen=True)
class _Event:
    """What happened to a rank."""

    rank: int
    kind: str  # failed: by itself; lost: dead without a word, or never come; cut: left alone in a collective
    code: int
    text: str
    trace: str = ""


class _Line:
    """Messages over a socket: a JSON object a line."""

    def __init__(self, connection: socket.socket, rank: int | None = None) -> None:
        self.connection = connection
        self.rank = rank  # of the other end; None until it has said so
        self._received = b""
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _PROBES:
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
        # A forked child (of a data loader) would hold the line open when this process is dead.
        os.register_at_fork(after_in_child=connection.close)

    def send(self, **message: Any) -> None:
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


class Heartbeat:
    """One rank's end of its line; made by `join`."""

    def __init__(self, rank: int, store: dist.TCPStore, line: _Line, hub: _Hub | None) -> None:
        self._rank, self._line, self._hub = rank, line, hub
        self._store = store  # the first rank serves it as long as it lives
        self._hosts: list[str] = []
        self._complete = threading.Event()
        self._closed = False
        self._reported: _Event | None = None
        threading.Thread(target=self._listen, name="heartbeat", daemon=True).start()

    def wait_for_all(self, timeout: timedelta) -> None:
        """Waits until all ranks have come; if they do not, the job ends."""
        late = 0 if self._hub is not None else 30  # the first rank, which knows who is missing, tells it
        if self._complete.wait(timeout.total_seconds() + late):
            return
        if self._hub is None:
            self.fail(UserError(f"rank 0 does not say within {_minutes(timeout)} that all ranks have come"))
        self._report(_Event(self._rank, "lost", 2, self._hub.who_is_missing(timeout)))

    def fail(self, error: BaseException) -> NoReturn:
        """Tells all ranks why this one fails, and ends it with the code that all end with."""
        self._report(_event_of(self._rank, error))

    def _report(self, event: _Event) -> NoReturn:
        self._reported = event
        with suppress(OSError):  # the first rank is gone: `_listen` tells of it
            self._line.send(**vars(event))
        time.sleep(_SECONDS_TO_ANSWER)  # within which `_listen` ends this process
        _end_alone(event)

    def close(self) -> None:
        """Says that this rank has done its work: from here on it is not missed."""
        self._closed = True
        with suppress(OSError):
            self._line.send(bye=True)
        if self._hub is not None:
            self._hub.join()
        with suppress(OSError):
            self._line.connection.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        while True:
            try:
                messages = self._line.receive()
            except OSError as error:
                if not self._closed:
                    self._leave_without_first(error)
                return
            for message in messages:
                if "code" in message:
                    os._exit(message["code"])
                if "bye" in message:
                    return
                self._hosts = message["hosts"]
                self._complete.set()

    def _leave_without_first(self, error: OSError) -> NoReturn:
        """The first rank is dead, and nobody else can tell the others' reason: the next one does."""
        time.sleep(_SECONDS_FOR_MORE_LOST)
        hosts = self._hosts or ["its host"] * (self._rank + 1)
        teller = 1
        if isinstance(error, TimeoutError):  # its whole host is gone, and other ranks with it
            teller = next((rank for rank, host in enumerate(hosts) if host != hosts[0]), 1)
        own = self._reported
        if own is not None and own.kind == "failed":
            _tell(own.text, own.trace)
        elif self._rank == teller:
            _tell(_lost_text(error, name_ranks([0], hosts)), "")
        os._exit(1 if own is None else own.code)


class _Hub(threading.Thread):
    """In the first rank's process, the other end of all lines."""

    def __init__(self, world_size: int, own: socket.socket) -> None:
        super().__init__(name="heartbeat-hub", daemon=True)
        self.token = secrets.token_hex(16)  # else whoever finds the port could end the training
        self._hosts = {0: socket.gethostname()}
        self._lines = {0: _Line(own, 0)}
        self._world_size = world_size
        self._left: set[int] = set()
        self._events: list[_Event] = []
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
        return self._listener.getsockname()[1]

    def who_is_missing(self, timeout: timedelta) -> str:
        self._late = 0.0  # they have had their time
        came = sorted(self._lines)
        missing = [rank for rank in range(self._world_size) if rank not in came]
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        hosts = [self._hosts.get(rank, "") for rank in range(self._world_size)]
        return (
            f"{_numbers(missing)} did not come to {where} within {_minutes(timeout)}, {name_ranks(came, hosts)} did: see on "
            "the other hosts whether they started and can reach that name and port (launch.timeout_minutes sets how long to wait)"
        )

    def run(self) -> None:
        while self._events or 0 not in self._left:
            self._hear_all(None if not self._events else max(0.0, self._since + self._patience() - _now()))
            if self._events and _now() >= self._since + self._patience():
                self._end(self._cause())
        for rank in set(self._lines) - self._left:
            with suppress(OSError):
                self._lines[rank].send(bye=True)
        self._listener.close()

    def _hear_all(self, timeout: float | None) -> None:
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                connection, _ = self._listener.accept()
                self._selector.register(connection, selectors.EVENT_READ, _Line(connection))
            else:
                self._hear(key.data)

    def _hear(self, line: _Line) -> None:
        try:
            messages = line.receive()
            if line.rank is None:
                messages = self._admit(line, messages)
        except (OSError, ValueError, LookupError, TypeError) as error:  # also of a stranger's words
            self._selector.unregister(line.connection)
            line.connection.close()
            if line.rank is not None and line.rank not in self._left:
                self._left.add(line.rank)
                self._add(_Event(line.rank, "lost", 1, _lost_text(error, self._who([line.rank]))))
            return
        for message in messages:
            if "bye" in message:
                self._left.add(line.rank or 0)
            else:
                self._add(_Event(**message))

    def _admit(self, line: _Line, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
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

    def _add(self, event: _Event) -> None:
        if event.rank not in {known.rank for known in self._events}:
            # A death or a failure after broken collectives is what broke them: from now on it is waited for others alike.
            if self._events == [] or (event.kind != "cut" and self._cause().kind == "cut"):
                self._since = _now()
            self._events.append(event)

    def _cause(self) -> _Event:
        return next((event for event in self._events if event.kind != "cut"), self._events[0])

    def _patience(self) -> float:
        if len(self._events) == self._world_size:
            return 0.0
        return {
            "failed": _SECONDS_FOR_THE_SAME,
            "lost": _SECONDS_FOR_MORE_LOST,
            "cut": _SECONDS_FOR_A_CAUSE,
        }[self._cause().kind]

    def _end(self, cause: _Event) -> NoReturn:
        """Prints the reason, tells it to all who are there or still come, and ends the first rank with them."""
        alike = [event for event in self._events if (event.kind, event.text) == (cause.kind, cause.text)]
        whose = self._who([event.rank for event in alike]) + ": "
        if cause.kind == "lost" or len(alike) == self._world_size:
            whose = ""
        # The longest: where ranks raise what one of them has found (`together`), its own says where.
        _tell(whose + cause.text, max((event.trace for event in alike), key=len))
        told, since = {0}, _now()
        while True:
            for rank in set(self._lines) - told:
                told.add(rank)
                with suppress(OSError):
                    self._lines[rank].send(code=cause.code)
            waited = _SECONDS_TO_TELL if set(self._lines) - self._left - {0} else 0.0
            if len(self._lines) < self._world_size:
                waited = max(waited, self._late)
            if _now() >= since + waited:
                os._exit(cause.code)
            self._hear_all(0.1)

    def _who(self, ranks: list[int]) -> str:
        return name_ranks(ranks, [self._hosts.get(rank, "") for rank in range(self._world_size)])


def join(rank: int, world_size: int, *, timeout: timedelta) -> Heartbeat:
    """Draws this rank's line to the first one, whose place `MASTER_ADDR` and `MASTER_PORT` tell.

    Raises:
        UserError: The first rank cannot be reached, or its port is taken.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun serves the store itself, and keeps it for all its attempts.
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    key = f"lape_ds/heartbeat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    serves = rank == 0 and not agents
    if not serves:
        _wait_for_server(address, port, timeout)
    try:
        store = dist.TCPStore(address, port, None, serves, timeout, wait_for_workers=False, multi_tenant=True)
    except dist.DistNetworkError as error:
        raise UserError(
            f"port {port} of {socket.gethostname()} cannot be served ({_last(error)}): another job of that port may run there; "
            "set another one (--master_port)"
        ) from error
    if rank == 0:
        ours, hubs = socket.socketpair()
        hub = _Hub(world_size, hubs)
        hub.start()
        store.set(key, f"{hub.port} {hub.token}")
        return Heartbeat(rank, store, _Line(ours), hub)
    hub_port, token = store.get(key).decode().split()
    line = _Line(_reach(address, int(hub_port)))
    line.send(rank=rank, host=socket.gethostname(), token=token)
    return Heartbeat(rank, store, line, None)


def fail_alone(rank: int, error: BaseException) -> NoReturn:
    """Tells this rank's error and ends it, where no other rank can be told."""
    _end_alone(_event_of(rank, error))


def _end_alone(event: _Event) -> NoReturn:
    _tell(f"rank {event.rank} on {socket.gethostname()}: {event.text}", event.trace)
    os._exit(event.code)


def _wait_for_server(address: str, port: int, timeout: timedelta) -> None:
    """Waits in Python: the store's own waiting ends in a stack trace on stderr."""
    until = _now() + timeout.total_seconds()
    while True:
        try:
            socket.create_connection((address, port), timeout=10).close()
            return
        except OSError as error:
            if _now() >= until:
                raise UserError(
                    f"could not reach rank 0 at {address}:{port} within "
                    f"{_minutes(timeout)} ({error}): see whether it started there, and whether that name and port can be "
                    "reached from here (launch.timeout_minutes sets how long to wait)"
                ) from error
            time.sleep(0.2)


def _reach(address: str, port: int) -> socket.socket:
    try:
        connection = socket.create_connection((address, port), timeout=60)
    except OSError as error:
        raise UserError(
            f"cannot reach rank 0 at {address}:{port} ({error}): ranks need each other's "
            "free ports, open them between the hosts"
        ) from error
    connection.settimeout(None)
    return connection


def _event_of(rank: int, error: BaseException) -> _Event:
    if isinstance(error, UserError):
        return _Event(rank, "failed", 2, " ".join(str(error).split()))
    if isinstance(error, KeyboardInterrupt):
        return _Event(rank, "failed", _INTERRUPTED, "interrupted")
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    kind = "cut" if _is_cut(error) else "failed"
    return _Event(rank, kind, 1, text, "".join(traceback.format_exception(error))[-20_000:])


def _is_cut(error: BaseException | None) -> bool:
    """Whether a collective failed because another rank has left."""
    while error is not None:
        # gloo's errors have no type of their own.
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _tell(text: str, trace: str) -> None:
    """One line on stderr (for our own fault, its traceback before it), past a buffer whose lock a blocked thread may hold."""
    data = f"{trace}error: {text}\n".encode(errors="backslashreplace")
    with suppress(OSError):  # nobody reads any more
        while data:
            data = data[os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, data) :]


def _lost_text(error: BaseException, who: str) -> str:
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


def _minutes(timeout: timedelta) -> str:
    return f"{timeout.total_seconds() / 60:g} minutes"


def _last(error: BaseException) -> str:
    return str(error).rpartition("message: ")[2]


def _now() -> float:
    return time.monotonic()
