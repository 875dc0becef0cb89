"""Lines over which the first rank of an evaluation gives the others work and hears their answers.

Below serving.py. JSON over TCP, to the address where every rank has already reached the first one (heartbeat.py): whoever gets at
a line can say something false, but nothing that runs. Not torch's collectives: gloo would look for a network interface by the
host's own name, and all of them have time-outs, while the first rank may fetch a data set for an hour before it asks anything.
Who has died is told by the heartbeat.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import struct
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any, NoReturn

import torch.distributed as dist

from lape_ds.distributed import ranks
from lape_ds.distributed.heartbeat_hub import keep_alive

_KEY = "evaluation"
_HELLO = struct.Struct("!16sI")  # token, rank
_LENGTH = struct.Struct("!Q")  # in bytes, of the message behind it


def open_channels() -> list[Channel]:
    """On the first rank: a line to each of the others, in their order."""
    token = secrets.token_bytes(16)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server(
        ("", 0), family=family, dualstack_ipv6=both, backlog=ranks.world_size()
    ) as server:
        ranks.publish(_KEY, f"{server.getsockname()[1]} {token.hex()}")
        return _accept(server, token)


def _accept(server: socket.socket, token: bytes) -> list[Channel]:
    """Hears all who come at once: a stranger who says nothing, or half a word, holds up nobody."""
    missing = set(range(1, ranks.world_size()))
    found: list[Channel] = []
    said: dict[socket.socket, bytes] = {}
    server.setblocking(False)
    while missing:
        for one in wait([server, *said]):
            assert isinstance(one, socket.socket)
            try:
                if one is server:
                    came, _ = server.accept()
                    came.setblocking(False)
                    said[came] = b""
                    continue
                piece = one.recv(_HELLO.size - len(said[one]))
            except (BlockingIOError, ConnectionAbortedError):  # has gone again
                continue
            except OSError:
                piece = b""
            said[one] += piece
            if piece and len(said[one]) < _HELLO.size:
                continue
            rank = _rank_of(said.pop(one), token)
            if rank in missing:
                missing.remove(rank)
                found.append(Channel(one, rank))
            else:
                one.close()
    for one in said:
        one.close()
    return sorted(found, key=lambda channel: channel.rank)


def _rank_of(hello: bytes, token: bytes) -> int:
    """Which rank says so; the first one's own, which nobody can be, if it is none of the job."""
    if len(hello) < _HELLO.size:
        return 0
    given, rank = _HELLO.unpack(hello)
    return rank if secrets.compare_digest(given, token) else 0


def reach_first() -> Channel:
    """On another rank: its line to the first one."""
    port, token = ranks.published(_KEY).split()
    connected = socket.create_connection((os.environ["MASTER_ADDR"], int(port)))
    connected.sendall(_HELLO.pack(bytes.fromhex(token), ranks.rank()))
    return Channel(connected, 0)


def ready(channels: Sequence[Channel], timeout: float | None) -> list[Channel]:
    """Those from which something has come, waiting at most so many seconds for the first (None: as long as it takes)."""
    came = wait([channel.connection for channel in channels], timeout)
    return [channel for channel in channels if channel.connection in came]


class Channel:
    """A line to another rank. A broken one ends this process, with the reason that the heartbeat tells."""

    def __init__(self, connected: socket.socket, rank: int) -> None:
        connected.settimeout(None)
        keep_alive(connected)  # firewalls forget what is silent
        self.connection = connected
        self.rank = rank  # of the other end

    def send(self, message: Any) -> None:
        """Sends strings, numbers (to the last bit, NaN and infinities too), lists and dicts of them, of any size.

        Raises:
            TypeError: It is something else, of which nothing has been sent.
        """
        content = json.dumps(message).encode()
        try:
            self.connection.sendall(_LENGTH.pack(len(content)))
            self.connection.sendall(content)
        except OSError as error:
            self._fail(error)

    def receive(self) -> Any:
        """The next message; waits for it. A tuple arrives as a list."""
        try:
            (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
            return json.loads(self._read(length))
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Ends the line; the other end still hears what was sent."""
        self.connection.close()

    def _read(self, length: int) -> bytes:
        pieces: list[bytes] = []
        while length:
            piece = self.connection.recv(min(length, 1 << 20))
            if not piece:
                raise ConnectionResetError("closed")
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)

    def _fail(self, error: BaseException) -> NoReturn:
        # What the heartbeat takes for another rank's fault, of which it is still to hear.
        ranks.fail(dist.DistNetworkError(f"the line to rank {self.rank} has broken ({error})"))
