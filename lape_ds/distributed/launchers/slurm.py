"""What Slurm tells the tasks of a step, as torch and DeepSpeed read it: `srun` is launcher enough.

Beside the other launchers. Needs no torch.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess

from lape_ds.distributed.launchers.job import PORTS
from lape_ds.errors import UserError

# Slurm's warning comes two minutes before the limit, or up to three; then ranks keep a checkpoint and end.
_SECONDS_AT_END = 300.0


def job_name() -> str:
    """What scontrol calls this job alone. One task of every array has the array's own number: it would mean all of them."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def at_time_limit(shown: str) -> bool:
    """Whether a job is at the end of its time limit, by what `scontrol show job` says (whose EndTime preemption moves)."""
    match = re.search(r"RunTime=(\S+) TimeLimit=(\d\S*)", shown)  # no number: unlimited
    if match is None:
        return False
    ran, limit = _seconds(match[1]), _seconds(match[2])
    return limit - ran < max(_SECONDS_AT_END, limit / 10)


def _seconds(text: str) -> int:
    """`1-02:03:04` → 93,784."""
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = map(int, clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def num_tasks() -> int:
    """Tasks of the step that this process is one of; 0 outside a step, also in a batch script."""
    inside = "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) if inside else 0


def num_nodes() -> int:
    """Nodes of the step that this process is one of, else of the job; 0 outside Slurm."""
    return int(os.environ.get("SLURM_STEP_NUM_NODES" if num_tasks() else "SLURM_JOB_NUM_NODES", "0"))


def is_rank() -> bool:
    """Whether a launcher has already made this process a rank: torchrun, DeepSpeed, or srun with several tasks."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return several or "TORCHELASTIC_RUN_ID" in os.environ or num_tasks() > 1


def process_number() -> int:
    """This process's number among those that were started together; 0 alone."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    return int(os.environ["SLURM_PROCID"]) if num_tasks() > 1 else 0


def become_rank() -> None:
    """Says in torch's names what Slurm says in its own; nothing outside a step, or where a launcher has spoken.

    Raises:
        UserError: The first node's address cannot be had.
    """
    if not num_tasks() or "RANK" in os.environ:
        return
    environ = os.environ
    if "MASTER_ADDR" not in environ:  # before all else: whoever is a rank tells a mistake to that address
        environ["MASTER_ADDR"] = node_address(node_names(environ["SLURM_STEP_NODELIST"])[0])
    local, node = int(environ["SLURM_LOCALID"]), int(environ["SLURM_NODEID"])
    # With --gpus-per-task each task sees one GPU, its own, as the first.
    gpus = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    environ["LOCAL_RANK"] = "0" if len(gpus) == 1 and gpus[0] else str(local)
    environ["RANK"] = environ["SLURM_PROCID"]
    environ["WORLD_SIZE"] = str(num_tasks())
    environ["LOCAL_WORLD_SIZE"] = str(tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])[node])
    # The same for all tasks without a word between them. `sbatch launch/slurm.sbatch` looks for one that is free.
    number = int(environ["SLURM_JOB_ID"]) * 7 + int(environ["SLURM_STEP_ID"])
    environ.setdefault("MASTER_PORT", str(PORTS[number % len(PORTS)]))


def tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` → 2, 2, 2, 1."""
    counts: list[int] = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(tasks)] * int(times or 1)
    return counts


def node_names(node_list: str) -> list[str]:
    """`n[1-2],x` → n1, n2, x."""
    return scontrol("show", "hostnames", node_list).split()


def node_address(name: str) -> str:
    """Where other nodes find a node: its name if that is known, else the address that Slurm has of it."""
    try:
        socket.getaddrinfo(name, None)
    except socket.gaierror:
        match = re.search(r"NodeAddr=(\S+)", scontrol("show", "node", name))
        return match[1] if match else name
    return name


def scontrol(*arguments: str) -> str:
    """What `scontrol` prints.

    Raises:
        UserError: It is not there or fails.
    """
    command = ["scontrol", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise UserError("this is a Slurm job, but scontrol is not on PATH") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"`{' '.join(command)}` failed: {error.stderr.strip()}") from None
