"""What every node of a training is told, in one argument: pdsh carries no environment, and quotes nothing.

Between the hosts and the nodes.
"""

from __future__ import annotations

import base64
import json
import os
import random
import secrets
import socket
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lape_ds.distributed.launchers.hosts import Hosts

TRAINING = "lape_ds.training.main"
COMMAND_LINE = "lape_ds.cli"
NODE = "lape_ds.distributed.launchers.node"
# Below the range from which systems give ports to clients.
PORTS = range(15_000, 30_000)
_TRIES = 50


@dataclass(frozen=True)
class Job:
    """Processes on some hosts.

    Attributes:
        hosts: In the order of ranks.
        module: What each process runs, as `python -m` does.
        arguments: Of it.
        master_addr: Where the first rank listens.
        master_port: Its port.
        one_process: One on the first host, which is no rank, instead of one per slot.
        token: Tells this job's processes from all others.
    """

    hosts: Hosts
    module: str
    arguments: list[str]
    master_addr: str
    master_port: int
    one_process: bool = False
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def encoded(self) -> str:
        """As one word that no shell changes."""
        return base64.urlsafe_b64encode(json.dumps(asdict(self)).encode()).decode()

    @classmethod
    def decoded(cls, word: str) -> Job:
        """From such a word."""
        return cls(**json.loads(base64.urlsafe_b64decode(word)))

    def rank_environments(self, host: str) -> list[dict[str, str]]:
        """What distinguishes each process of a host, in the names that torch and DeepSpeed read."""
        slots = self.hosts[host]
        visible = {"CUDA_VISIBLE_DEVICES": ",".join(slots)}
        if self.one_process:
            return [visible]
        node = list(self.hosts).index(host)
        before = sum(len(others) for others in list(self.hosts.values())[:node])
        shared = {
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
            "WORLD_SIZE": str(sum(map(len, self.hosts.values()))),
            "LOCAL_WORLD_SIZE": str(len(slots)),
        }
        return [
            visible | shared | {"RANK": str(before + local), "LOCAL_RANK": str(local)}
            for local in range(len(slots))
        ]


def free_port() -> int:
    """A port that is free on this machine and, being drawn, most likely on the first host too."""
    for _ in range(_TRIES):
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"none of {_TRIES} ports tried is free")


def node_command(job: Job, host: str) -> list[str]:
    """The command that starts a job's processes on one of its hosts, there."""
    return [sys.executable, "-m", NODE, job.token, job.encoded(), host]


def python_path() -> str:
    """PYTHONPATH with which processes import lape_ds also where only its checkout is there."""
    root = str(Path(__file__).resolve().parents[3])
    return os.pathsep.join(dict.fromkeys(filter(None, [root, *os.environ.get("PYTHONPATH", "").split(":")])))
