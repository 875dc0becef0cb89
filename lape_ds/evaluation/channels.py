"""Lines over which the first rank of an evaluation gives the others work and hears their answers.

Below serving.py. Python objects over TCP, to the address where every rank has already reached the first one (heartbeat.py). Not
torch's collectives: gloo would look for a network interface by the host's own name, and all of them have time-outs, while the
first rank may fetch a data set for an hour before it asks anything. Who has died is told by the heartbeat.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import torch.distributed as dist

from lape_ds.training import ranks
from lape_ds.training.heartbeat_hub import keep_alive

_KEY = "evaluation"
_SECONDS_TO_SAY_WHO = 30.0  # that a stranger at the port can hold us up


def open_channels() -> list[Channel]:
    """On the first rank: a line to each of the others, in their order."""
    token = secrets.token_bytes(16)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    found: dict[int, Channel] = {}
    with socket.create_server(
        ("", 0), family=family, dualstack_ipv6=both, backlog=ranks.world_size()
    ) as server:
        ranks.publish(_KEY, f"{server.getsockname()[1]} {token.hex()}")
        while len(found) < ranks.world_size() - 1:
            connection, _ = server.accept()
            channel = Channel(connection, 0)
            if channel.is_ours(token):  # before anything that it says is unpickled
                channel.rank = channel.receive()
                found[channel.rank] = channel
    return [found[rank] for rank in sorted(found)]


def reach_first() -> Channel:
    """On another rank: its line to the first one."""
    port, token = ranks.published(_KEY).split()
    channel = Channel(socket.create_connection((os.environ["MASTER_ADDR"], int(port))), 0)
    channel.prove(bytes.fromhex(token))
    channel.send(ranks.rank())
    return channel


def ready(channels: Sequence[Channel], timeout: float | None) -> list[Channel]:
    """Those from which something has come, waiting at most so many seconds for the first (None: as long as it takes)."""
    waiting = {channel.connection: channel for channel in channels}
    return [waiting[one] for one in wait(list(waiting), timeout) if isinstance(one, Connection)]


class Channel:
    """A line to another rank. A broken one ends this process, with the reason that the heartbeat tells."""

    def __init__(self, connected: socket.socket, rank: int) -> None:
        connected.settimeout(None)
        keep_alive(connected)  # firewalls forget what is silent
        self.connection = Connection(connected.detach())
        self.rank = rank  # of the other end

    def prove(self, token: bytes) -> None:
        """Says that this is a rank of the job."""
        self.connection.send_bytes(token)

    def is_ours(self, token: bytes) -> bool:
        """Whether the other end is a rank of the job."""
        try:
            return self.connection.poll(_SECONDS_TO_SAY_WHO) and secrets.compare_digest(
                self.connection.recv_bytes(len(token)), token
            )
        except (OSError, EOFError):
            return False

    def send(self, message: Any) -> None:
        """Sends an object of any size."""
        try:
            self.connection.send(message)
        except OSError as error:
            self._fail(error)

    def receive(self) -> Any:
        """The next object; waits for it."""
        try:
            return self.connection.recv()
        except (OSError, EOFError) as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> NoReturn:
        # What the heartbeat takes for another rank's fault, of which it is still to hear.
        ranks.fail(dist.DistNetworkError(f"the line to rank {self.rank} has broken ({error or 'closed'})"))
