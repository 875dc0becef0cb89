"""One rank that trains every case through the real engine and tells what it finds in memory, by kind."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from lape_ds.distributed import ranks
from lape_ds.model.loading import load_model, load_skeleton
from lape_ds.model.loss import LanguageModelLoss
from lape_ds.model.meters import storage_bytes
from lape_ds.subnetwork.masked import MaskedOptimizer
from lape_ds.subnetwork.methods import prepare, torch_optimizer
from lape_ds.subnetwork.recomputing import recompute_layers
from lape_ds.training.partitioned import fill_partitioned
from lape_ds.training.plan.candidates import Costing
from lape_ds.training.plan.cluster import Cluster
from lape_ds.training.plan.methods import Subject, section_of
from lape_ds.training.zero import initialize, take_step
from tests.training.plan.cases import ACCUMULATION, BLOCKS, WORLD_SIZE, Case, all_cases, neurons_of

LINEAR = functional.linear
STEPS = 4  # the first makes the moments and lets ZeRO-3 learn the order of modules


class Kept:
    """Bytes that autograd keeps for backward; weights are left out wherever ZeRO-3 has them at that moment."""

    def __init__(self, parameters: Iterable[nn.Parameter], look: Any) -> None:
        self._parameters, self._look = list(parameters), look
        self._kept: dict[int, Tensor] = {}
        self.bytes = 0

    def __enter__(self) -> Kept:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self._hooks.__exit__(*failure)

    def _pack(self, tensor: Tensor) -> Tensor:
        weights = {param.untyped_storage()._cdata for param in self._parameters}
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in self._kept:
            self._kept[storage._cdata] = tensor  # holds it, so that no other takes its place
            self.bytes += storage.nbytes()
        return tensor

    def _unpack(self, tensor: Tensor) -> Tensor:
        self._look()
        return tensor


class Live:
    """Elements of whole weights under ZeRO-3, looked at whenever something is computed."""

    def __init__(self, engine: Any) -> None:
        self.most, self._engine = 0, engine
        self._hooks = [
            module.register_forward_pre_hook(lambda *_: self.look()) for module in engine.module.modules()
        ]

    def look(self) -> None:
        if self._engine.zero_optimization_stage() == 3:
            coordinator = self._engine.optimizer.parameter_offload.get_param_coordinator()
            self.most = max(self.most, coordinator._PartitionedParameterCoordinator__n_available_params)


def tensors_alive(parameters: list[nn.Parameter]) -> list[Tensor]:
    gc.collect()
    found = [one for one in gc.get_objects() if issubclass(type(one), Tensor) and not one.is_meta]
    return [*found, *(param.grad for param in parameters if param.grad is not None)]


def gradients_of(parameters: list[nn.Parameter]) -> list[Tensor]:
    both = [one for param in parameters for one in (param.grad, getattr(param, "grad_accum", None))]
    return [one for one in both if one is not None]


def masters_of(engine: Any) -> list[Tensor]:
    optimizer = engine.optimizer
    for name in (
        "single_partition_of_fp32_groups",
        "fp32_groups_flat_partition",
        "fp32_partitioned_groups_flat",
    ):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [one for group in getattr(optimizer, "fp32_groups", []) for one in group]


def bucket_bytes(engine: Any) -> int:
    buckets = getattr(engine.optimizer, "ipg_buckets", {}).values()
    return sum(storage_bytes(tree_leaves(bucket.buffer)) for bucket in buckets if bucket.buffer is not None)


def host_tensors(engine: Any) -> list[Tensor]:
    """What offload of the optimizer keeps beside masters and moments."""
    optimizer = engine.optimizer
    names = (
        "grad_partitions_flat_buffer",
        "accumulated_grads_in_cpu",
        "param_buffer_of_bit16_for_cpu_offload_groups",
    )
    found = tree_leaves([getattr(optimizer, name, None) for name in names])
    found += [master.grad for master in masters_of(engine)]
    return [one for one in found if isinstance(one, Tensor)]


def run(case: Case, folder: Path) -> dict[str, int]:
    gc.collect()
    gc.freeze()  # what is here by now needs no looking at
    functional.linear = LINEAR  # ZeRO-3 of an earlier case has put DeepSpeed's in its place
    recipe = case.recipe(folder)
    section, dtype = recipe.model, getattr(torch, case.dtype)
    costing = Costing(recipe, Cluster(1, WORLD_SIZE, 10**9, gpu=""))
    config = costing.config(case.setting)
    where = Path(section.path)
    if case.stage < 3:
        model = load_model(where, dtype=case.dtype, attn_implementation="sdpa").train()
    else:
        model = load_skeleton(where, dtype=dtype, attn_implementation="sdpa").train()
        fill_partitioned(model, where, config)
    neurons = neurons_of(case.size)
    subject = Subject(recipe, model, neurons, "")
    torch.manual_seed(0)
    trained = prepare(model, section_of(subject, case.method), neurons)
    recompute_layers(model, case.checkpointing)
    engine: Any = initialize(LanguageModelLoss(model), torch_optimizer(trained), config)
    parameters = list(engine.parameters())
    live = Live(engine)
    told: dict[str, int] = {}
    training = [param for param in parameters if param.requires_grad]

    def look(_: nn.Parameter) -> None:
        told["buckets"] = max(told.get("buckets", 0), bucket_bytes(engine))
        told["unreduced"] = max(told.get("unreduced", 0), storage_bytes(gradients_of(training)))

    for param in training:
        param.register_post_accumulate_grad_hook(look)
    persistent = [getattr(engine.optimizer, "grad_partitions_flat_buffer", None)]
    persistent += getattr(engine.optimizer, "fp32_groups_gradients_flat", [])
    generator = torch.Generator().manual_seed(dist.get_rank())
    for step in range(STEPS):
        last = (
            step >= STEPS - 2
        )  # looking at all tensors is slow, and may find some that only now have come to light
        before = storage_bytes(tensors_alive(parameters)) if last else 0
        for number in range(ACCUMULATION):
            ids = torch.randint(3, 500, (BLOCKS, 48), generator=generator)
            targets = ids.roll(-1, 1)
            with Kept([*parameters, *engine.buffers()], live.look) as kept:
                loss, per_token = engine(input_ids=ids, targets=targets)
            told["activations"] = kept.bytes
            engine.backward(loss / loss.detach())
            del loss, per_token, kept
            told["host"] = max(told.get("host", 0), storage_bytes(host_tensors(engine)))
            if number + 1 < ACCUMULATION:
                engine.step()
        if last:
            own = storage_bytes(one for one in persistent if one is not None)
            reduced = storage_bytes(tensors_alive(parameters)) - before
            # Before stage 2 there is a moment in which no gradient is reduced yet.
            found = own + (told["unreduced"] if case.stage < 2 else reduced)
            told["gradients"] = min(told.get("gradients", found), found)
        take_step(engine)
    inner: Any = trained._inner if isinstance(trained, MaskedOptimizer) else trained.optimizer
    moments = [
        one for one in tree_leaves(list(inner.state.values())) if isinstance(one, Tensor) and one.dim()
    ]
    stored = [getattr(param, "ds_tensor", param) for param in parameters]
    told |= {
        "weights": sum(one.numel() * one.element_size() for one in stored),
        "masters": storage_bytes(masters_of(engine)),
        "moments": storage_bytes(moments),
        "gathers": live.most * stored[0].element_size(),
    }
    engine.destroy()
    return told


def main(folder: Path, *names: str) -> None:
    ranks.start()
    found = {case.name: run(case, folder) for case in all_cases() if case.name in names}
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    if dist.get_rank() == 0:
        most = {
            name: {kind: max(one[name].get(kind, 0) for one in everyone) for kind in kinds}
            for name, kinds in found.items()
        }
        (folder / "measured.json").write_text(json.dumps(most))
    dist.barrier()
    ranks.end()
    ranks.leave(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *sys.argv[2:])
