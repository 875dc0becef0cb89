"""A line from every rank to the first one, by which all of them learn at once that one has failed, and why.

Beside the process group, in which ranks wait for a dead one until a time-out. A rank that fails says so before it ends; one that
is killed has its line closed by the kernel; of a host that is gone, the kernel's own probes (TCP keepalive) go unanswered. The
first rank prints the one reason, tells the others, and all leave, from a thread, whatever their main threads are blocked in.

Nobody sends beats from Python: a process that is stopped, or whose interpreter is held by a long call, answers the kernel's
probes all the same, so what is slow is never taken for dead.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from lape_ds.distributed.heartbeat_hub import (
    SECONDS_FOR_MORE_LOST,
    Event,
    Hub,
    Line,
    in_minutes,
    lost_text,
    name_ranks,
    tell,
    tell_event,
)
from lape_ds.distributed.stopping import STOPPED
from lape_ds.errors import UserError

_SECONDS_TO_ANSWER = 40.0  # that the first rank has; then a failed rank tells its reason itself


class Heartbeat:
    """One rank's end of its line; made by `join`."""

    def __init__(self, rank: int, store: TCPStore, line: Line, hub: Hub | None) -> None:
        self._rank, self._line, self._hub = rank, line, hub
        self.store = store  # the first rank serves it as long as it lives
        self._hosts: list[str] = []
        self._complete = threading.Event()
        self._closed = False
        self._alone = False  # the first rank has done its work
        self._reported: Event | None = None
        threading.Thread(target=self._listen, name="heartbeat", daemon=True).start()

    def wait_for_all(self, timeout: timedelta) -> None:
        """Waits until all ranks have come; if they do not, the job ends."""
        late = 0 if self._hub is not None else 30  # the first rank, which knows who is missing, tells it
        if self._complete.wait(timeout.total_seconds() + late):
            return
        if self._hub is None:
            self.fail(UserError(f"rank 0 does not say within {in_minutes(timeout)} that all ranks have come"))
        self._report(Event(self._rank, "lost", 2, self._hub.who_is_missing(timeout)))

    def fail(self, error: BaseException) -> NoReturn:
        """Tells all ranks why this one fails, and ends it with the code that all end with."""
        self._report(_event_of(self._rank, error))

    def stop(self, text: str) -> NoReturn:
        """Tells all ranks that this one was asked to stop, before there was anything to keep; also from a signal handler."""
        # A rank that fails is told to stop as well, while it waits for the others to hear why.
        self._report(self._reported or Event(self._rank, "stopped", STOPPED, text))

    def _report(self, event: Event) -> NoReturn:
        self._reported = event
        with suppress(OSError):  # the first rank is gone: `_listen` tells of it
            self._line.send(**vars(event))
        if not self._alone:
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
                    self._alone = True
                    return
                self._hosts = message["hosts"]
                self._complete.set()

    def _leave_without_first(self, error: OSError) -> NoReturn:
        """The first rank is dead, and nobody else can tell the others' reason: the next one does."""
        time.sleep(SECONDS_FOR_MORE_LOST)
        hosts = self._hosts or ["its host"] * (self._rank + 1)
        teller = 1
        if isinstance(error, TimeoutError):  # its whole host is gone, and other ranks with it
            teller = next((rank for rank, host in enumerate(hosts) if host != hosts[0]), 1)
        own = self._reported
        if own is not None and own.kind in ("failed", "stopped"):
            tell_event(own.text, own)
        elif self._rank == teller:
            tell(f"error: {lost_text(error, name_ranks([0], hosts))}")
        os._exit(1 if own is None else own.code)


def join(rank: int, world_size: int, *, timeout: timedelta) -> Heartbeat:
    """Draws this rank's line to the first one, whose place `MASTER_ADDR` and `MASTER_PORT` tell.

    Raises:
        UserError: The first rank cannot be reached, or its port is taken.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    # torchrun serves the store itself.
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    key = store_key("heartbeat")
    serves = rank == 0 and not agents
    if not serves:
        _wait_for_server(address, port, timeout)
    try:
        store = TCPStore(address, port, None, serves, timeout, wait_for_workers=False, multi_tenant=True)
    except dist.DistNetworkError as error:
        raise UserError(
            f"port {port} of {socket.gethostname()} cannot be served ({_last(error)}): another job of that port may run there; "
            "set another one (--master_port)"
        ) from error
    if rank == 0:
        ours, hubs = socket.socketpair()
        hub = Hub(world_size, hubs)
        hub.start()
        store.set(key, f"{hub.port} {hub.token}")
        return Heartbeat(rank, store, Line(ours), hub)
    hub_port, token = _ask(store, key, timeout).split()
    line = Line(_reach(address, int(hub_port)))
    line.send(rank=rank, host=socket.gethostname(), token=token)
    return Heartbeat(rank, store, line, None)


def store_key(name: str) -> str:
    """Under which the first rank lays something down: torchrun keeps its store for all its attempts."""
    return f"lape_ds/{name}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def fail_alone(rank: int, error: BaseException) -> NoReturn:
    """Tells this rank's error and ends it, where no other rank can be told."""
    _end_alone(_event_of(rank, error))


def _end_alone(event: Event) -> NoReturn:
    tell_event(f"rank {event.rank} on {socket.gethostname()}: {event.text}", event)
    os._exit(event.code)


def _wait_for_server(address: str, port: int, timeout: timedelta) -> None:
    """Waits in Python: the store's own waiting ends in a stack trace on stderr."""
    until = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            socket.create_connection((address, port), timeout=10).close()
            return
        except OSError as error:
            if time.monotonic() >= until:
                raise UserError(
                    f"could not reach rank 0 at {address}:{port} within "
                    f"{in_minutes(timeout)} ({error}): see whether it started there, and whether that name and port can be "
                    "reached from here (launch.timeout_minutes sets how long to wait)"
                ) from error
            time.sleep(0.2)


def _ask(store: TCPStore, key: str, timeout: timedelta) -> str:
    """What the first rank puts there, as soon as it does; asked for in Python, for the same reason."""
    until = time.monotonic() + timeout.total_seconds()
    try:
        while not store.check([key]):
            if time.monotonic() >= until:
                raise TimeoutError(f"nothing within {in_minutes(timeout)}")
            time.sleep(0.1)
            socket.create_connection((store.host, store.port), timeout=10).close()
        return store.get(key).decode()
    except (dist.DistError, OSError) as error:
        raise UserError(
            f"rank 0 at {store.host}:{store.port} has gone before this one could join it ({_last(error)}): see what it printed"
        ) from error


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


def _event_of(rank: int, error: BaseException) -> Event:
    if isinstance(error, UserError):
        return Event(rank, "failed", 2, " ".join(str(error).split()))
    if isinstance(error, KeyboardInterrupt):
        return Event(rank, "failed", STOPPED, "interrupted")
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    kind = "cut" if _is_cut(error) else "failed"
    return Event(rank, kind, 1, text, "".join(traceback.format_exception(error))[-20_000:])


def _is_cut(error: BaseException | None) -> bool:
    """Whether a collective failed because another rank has left."""
    while error is not None:
        # gloo's errors have no type of their own.
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _last(error: BaseException) -> str:
    return str(error).rpartition("message: ")[2]
