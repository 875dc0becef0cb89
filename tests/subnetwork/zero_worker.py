"""One rank of both engines' tests: runs every case, one after another, and writes what came out."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from lape_ds.distributed import ranks
from lape_ds.model.loading import load_skeleton
from lape_ds.recipe import DeepSpeedSection, TrainSection
from lape_ds.subnetwork.anchor import L2Anchor
from lape_ds.subnetwork.compact import CompactFFN, CompactLinear, insert_slices
from lape_ds.subnetwork.compact_experts import CompactExperts
from lape_ds.subnetwork.masked import MaskedOptimizer
from lape_ds.subnetwork.methods import Trained, prepare, torch_optimizer
from lape_ds.subnetwork.parameters import ParameterEntries, TrainedParameter
from lape_ds.subnetwork.recomputing import recompute_layers
from lape_ds.training.checkpoint import CheckpointReader, CheckpointState
from lape_ds.training.memory import memory_by_kind
from lape_ds.training.partitioned import fill_partitioned
from lape_ds.training.saving import save_checkpoint
from lape_ds.training.zero import engine_config, initialize, set_learning_rate, take_step
from tests.subnetwork.zero_cases import (
    ACCUMULATION,
    CHECKPOINT_METHODS,
    MAX_NORM,
    NEURONS,
    OPTIMIZERS,
    STEPS,
    Case,
    all_cases,
    learning_rate,
    micro_batches,
)
from tests.tiny_models import tiny_model


def config_of(case: Case) -> dict[str, Any]:
    zero = {"sub_group_size": case.sub_group_size} if case.sub_group_size else {}
    section = {
        "zero_stage": case.stage,
        "offload_optimizer": case.offload,
        "config": {"zero_optimization": zero},
    }
    train = TrainSection(
        micro_batch_size=1, gradient_accumulation_steps=ACCUMULATION, gradient_clipping=MAX_NORM
    )
    return engine_config(train, DeepSpeedSection.model_validate(section), dtype=case.dtype)


def start(
    case: Case,
    *,
    method: str = "subnetwork",
    read: Callable[[str, int, int], Tensor] | None = None,
    folder: Path | None = None,
) -> tuple[deepspeed.DeepSpeedEngine, Trained]:
    """With a folder, that of the same model: its weights are partitioned before anything is made of them."""
    gc.collect()
    gc.freeze()  # DeepSpeed collects at every set-up, and need not look at all that is imported by now
    dtype = getattr(torch, case.dtype)
    if folder is None:
        model = tiny_model(case.model_type, dtype=dtype).train()
    else:
        model = load_skeleton(folder, dtype=dtype, attn_implementation="eager").train()
        fill_partitioned(model, folder, config_of(case))
    cls, settings = OPTIMIZERS[case.optimizer]
    settings: dict[str, Any] = settings | {"lr": learning_rate(0)}
    neurons = torch.tensor(case.neurons)
    if method != "subnetwork":
        torch.manual_seed(0)  # LoRA's random half
        section = {"method": method, "lora": {"r": 2, "dropout": 0.0}, "optimizer": {"learning_rate": 1e-3}}
        trained = prepare(model, TrainSection.model_validate(section), None)
    elif case.engine == "masked":
        trained = MaskedOptimizer(model, neurons, cls, **settings)
    else:
        trained = ParameterEntries(insert_slices(model, neurons), cls, **settings)
    anchor = L2Anchor(trained.parameters, case.anchor)
    if read is not None:
        trained.write_weights(read)
    recompute_layers(model, case.recomputing)
    engine = initialize(model, torch_optimizer(trained), config_of(case))
    if case.anchor:
        trained.anchor_to(anchor)
    return engine, trained


def train(engine: deepspeed.DeepSpeedEngine, steps: range, model_type: str = "llama") -> list[float]:
    """Returns the gradient norm of each step."""
    norms = []
    for step in steps:
        set_learning_rate(engine, learning_rate(step))
        for input_ids in micro_batches(step, dist.get_world_size(), model_type)[dist.get_rank()]:
            engine.backward(engine(input_ids=input_ids, labels=input_ids).loss)
            if engine.is_gradient_accumulation_boundary():
                norms.append(take_step(engine))
            else:
                engine.step()
    return norms


def gathered(engine: deepspeed.DeepSpeedEngine, stage: int) -> dict[str, Tensor]:
    """All weights of the model as it was before the engines, whole, on the CPU; every rank must enter this."""
    parameters = {name.removeprefix("module."): param for name, param in engine.named_parameters()}
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=stage == 3):
        for module in engine.modules():
            if isinstance(module, CompactFFN | CompactLinear | CompactExperts):
                module.write_slices()
        return {
            name: param.detach().clone().cpu()
            for name, param in parameters.items()
            if not name.endswith("slice")
        }


def run(case: Case, out: Path) -> None:
    engine, optimizer = start(case)
    predicted = memory_by_kind(engine, optimizer)
    norms = train(engine, range(STEPS), case.model_type)
    held = [value for part in optimizer.entry_ranges() for value in part.state.values()]
    sizes: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(sizes, sum(value.numel() * value.element_size() for value in held))
    weights = gathered(engine, case.stage)
    if dist.get_rank() == 0:
        save_file(weights, out / f"{case.name}.safetensors")
        (out / f"{case.name}.json").write_text(
            json.dumps({"norms": norms, "moment_bytes": sizes, "memory": predicted})
        )
    engine.destroy()


def set_up_only(out: Path) -> None:
    """What `deepspeed.initialize` alone does to masters and step counts under stage 0 in bf16."""
    told = {}
    for name in ("masked", "compact", "full"):
        model = tiny_model("llama", dtype=torch.bfloat16)
        before = {key: param.detach().clone() for key, param in model.named_parameters()}
        settings: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.5}  # one step would halve a twentieth off
        config = config_of(Case(0, dtype="bfloat16"))
        # The masked optimizer must withstand it alone, in a user's own loop; the others are protected by our set-up.
        if name == "masked":
            trained = MaskedOptimizer(model, torch.tensor(NEURONS), torch.optim.AdamW, **settings)
            engine, *_ = deepspeed.initialize(model=model, optimizer=trained, config=config)
        else:
            parts = (
                insert_slices(model, torch.tensor(NEURONS))
                if name == "compact"
                else [TrainedParameter(param, key) for key, param in model.named_parameters()]
            )
            trained = ParameterEntries(parts, torch.optim.AdamW, **settings)
            engine = initialize(model, trained.optimizer, config)
        weights = gathered(engine, 0)
        moved = any(not torch.equal(weights[key], before[key]) for key in before)
        for held in trained.entry_ranges():
            moved = moved or not torch.equal(held.masters.bfloat16().float(), held.masters)
        told[name] = {"moved": moved, "steps": int(trained.state_scalars().get("step", torch.zeros(())))}
        engine.destroy()
    if dist.get_rank() == 0:
        (out / "setup.json").write_text(json.dumps(told))


def own_checkpoints(out: Path) -> None:
    """Four steps at once against two, DeepSpeed's checkpoint into a fresh engine, two more."""
    same = {}
    for stage in (1, 2, 3):
        case = Case(stage, dtype="bfloat16")
        whole, first, second = (start(case)[0] for _ in range(3))
        train(whole, range(4))
        train(first, range(2))
        first.save_checkpoint(str(out / f"own-{stage}"))
        second.load_checkpoint(str(out / f"own-{stage}"))
        train(second, range(2, 4))
        weights = [gathered(engine, stage) for engine in (whole, second)]
        same[str(stage)] = all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        for engine in (whole, first, second):
            engine.destroy()
    if dist.get_rank() == 0:
        (out / "own_checkpoints.json").write_text(json.dumps(same))


def our_checkpoints(out: Path) -> None:
    """The same with lape-ds checkpoints, in bf16; from one engine to the other too, under ZeRO-3 into partitioned weights."""
    same = {}
    folder = out / "base"
    if dist.get_rank() == 0:
        tiny_model("llama", dtype=torch.bfloat16).save_pretrained(folder)
    dist.barrier()
    for (method, before, after), stage in itertools.product(CHECKPOINT_METHODS, (0, 1, 2, 3)):
        first_case, then = (Case(stage, dtype="bfloat16", engine=engine) for engine in (before, after))
        base = folder if stage == 3 else None
        whole, first = (start(first_case, method=method, folder=base) for _ in range(2))
        train(whole[0], range(4))
        train(first[0], range(2))
        state = CheckpointState(2, "base", first[1].num_entries, {}, None)
        name = f"{method}-{before}-{after}-z{stage}"
        reader = CheckpointReader(save_checkpoint(out / name, first[1], state))
        read = functools.partial(reader.read_key, "master")
        second = start(then, method=method, read=read, folder=base)
        second[1].load_entries(reader.read, reader.scalars)
        train(second[0], range(2, 4))
        weights = [gathered(engine, stage) for engine in (whole[0], second[0])]
        same[name] = all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
        for engine, _ in (whole, first, second):
            engine.destroy()
    if dist.get_rank() == 0:
        (out / "our_checkpoints.json").write_text(json.dumps(same))


def main(out: Path, *names: str) -> None:
    """Runs the cases named; without any, what is to be shown of checkpoints and of setting up."""
    ranks.start()
    for case in all_cases():
        if case.name in names:
            run(case, out)
    if not names:
        our_checkpoints(out)
        set_up_only(out)
        own_checkpoints(out)
    dist.barrier()
    ranks.end()
    ranks.leave(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert "RANK" in os.environ
    main(Path(sys.argv[1]), *sys.argv[2:])
