"""The machines that are planned for, and what is assumed of them.

Beside the profile. Memory decides what fits; the speeds below only rank what fits, and every estimate says so.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, replace

import torch

from lape_ds.distributed.host_memory import available_memory
from lape_ds.errors import UserError

GIGA = 10**9
# Kept free on every GPU. The share is for holes in the allocator's cache, the rest for the CUDA context and the buffers of cuBLAS
# and NCCL: no tensor accounts for them.
RESERVED_SHARE = 0.08
RESERVED_BYTES = 1 * GIGA

# Dense bfloat16 products per second, from NVIDIA's data sheets; by a part of the name that torch gives.
_PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}
_ASSUMED_GPU = "A100"  # of a cluster that is only named by its memory
_FP32_SHARE = 1 / 16  # of an A100's bf16 peak, without TF32: torch's default
_CPU_FLOPS = 50e9  # of one core, in fp32

# Assumptions of the estimates: what a training reaches of the peak, and bytes per second of one GPU's links.
UTILISATION = 0.4
NODE_BANDWIDTH = 100e9  # between GPUs of a node: NVLink; PCIe alone is a fifth
NETWORK_BANDWIDTH = 20e9  # between nodes: one 200 Gb/s adapter for each GPU
HOST_BANDWIDTH = 20e9  # between GPU and host: PCIe 4
GPU_MEMORY_BANDWIDTH = 1.5e12
HOST_MEMORY_BANDWIDTH = 50e9  # of a node, shared by its ranks


@dataclass(frozen=True)
class Cluster:
    """Nodes of equal GPUs; `gpu` "" stands for the processes of a machine without one.

    Attributes:
        nodes: Machines.
        gpus_per_node: GPUs of each, and ranks.
        memory: Bytes of one GPU; of a machine without one, what each rank may take.
        gpu: Its name, as torch gives it.
        host_memory: Bytes of a node for what offload moves there; None where it is not known, or is `memory` itself.
    """

    nodes: int
    gpus_per_node: int
    memory: int
    gpu: str = _ASSUMED_GPU
    host_memory: int | None = None

    @property
    def num_ranks(self) -> int:
        """One per GPU."""
        return self.nodes * self.gpus_per_node

    @property
    def usable(self) -> int:
        """Bytes of a GPU that tensors may take."""
        return int(self.memory * (1 - RESERVED_SHARE)) - (RESERVED_BYTES if self.gpu else 0)

    @property
    def device(self) -> torch.device:
        """Of what kind the ranks compute on."""
        return torch.device("cuda" if self.gpu else "cpu")

    def flops(self, element_size: int) -> float:
        """What one rank is assumed to compute in a second."""
        if not self.gpu:
            cores = len(os.sched_getaffinity(0)) / self.gpus_per_node
            return _CPU_FLOPS * UTILISATION * cores
        peak = peak_flops(self.gpu) or _PEAK_FLOPS[_ASSUMED_GPU]
        return UTILISATION * peak * (1 if element_size == 2 else _FP32_SHARE)

    @property
    def bandwidth(self) -> float:
        """Bytes per second between ranks."""
        return NODE_BANDWIDTH if self.nodes == 1 else NETWORK_BANDWIDTH

    def __str__(self) -> str:
        nodes = f"{self.nodes}x" if self.nodes > 1 else ""
        return f"{nodes}{self.gpus_per_node}x{self.memory / GIGA:.3g}GB"


def peak_flops(gpu: str) -> float | None:
    """What a GPU can do at most in bfloat16; None if it is not in our table."""
    return next((peak for part, peak in _PEAK_FLOPS.items() if part in gpu), None)


def parse_cluster(text: str) -> Cluster:
    """`8x40GB`, or with nodes `2x8x80GB`.

    Raises:
        UserError: Something else.
    """
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)x([1-9]\d*(?:\.\d+)?)GB?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UserError(
            f"--gpus {text}: write GPUs x memory, e.g. 8x40GB or 1x80GB; with nodes before them, e.g. 2x8x80GB"
        )
    nodes, gpus, memory = found.groups()
    return Cluster(int(nodes or 1), int(gpus), int(float(memory) * GIGA))


def gpus_here() -> Cluster | None:
    """The GPUs that this process sees; the smallest one's memory counts. None without any."""
    if not torch.cuda.is_available():
        return None
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    memory = min(gpu.total_memory for gpu in found)
    return Cluster(1, len(found), memory, found[0].name, host_memory=available_memory())


def this_machine(num_ranks: int | None) -> Cluster:
    """What a training started here would run on: its GPUs, or so many processes that share its memory.

    Args:
        num_ranks: `launch.num_ranks`.
    """
    gpus = gpus_here()
    if gpus is None:
        return cluster_of_job(None, num_ranks or 1, num_ranks or 1)
    return replace(gpus, gpus_per_node=min(num_ranks or gpus.gpus_per_node, gpus.gpus_per_node))


def cluster_of_job(gpus: Cluster | None, num_ranks: int, ranks_here: int) -> Cluster:
    """What a job runs on that has started: nodes like this one, with a GPU for each rank.

    Args:
        gpus: Those that this rank sees: all of its node, or its own alone, as Slurm may have it.
        num_ranks: All ranks.
        ranks_here: Those of this node.
    """
    nodes = math.ceil(num_ranks / ranks_here)
    if gpus is None:
        return Cluster(nodes, ranks_here, available_memory() // ranks_here, gpu="")
    return replace(gpus, nodes=nodes, gpus_per_node=ranks_here)
