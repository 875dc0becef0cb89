"""One rank of the masked engine's tests: runs every case, one after another, and writes what came out."""

from __future__ import annotations

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
from transformers import PreTrainedModel

from lape_ds.subnetwork.dense import DenseEntries
from lape_ds.subnetwork.masked import MaskedOptimizer
from lape_ds.subnetwork.methods import Trained, torch_optimizer
from lape_ds.training import ranks
from lape_ds.training.checkpoint import CheckpointReader, CheckpointState
from lape_ds.training.export import write_entries
from lape_ds.training.memory import memory_by_kind
from lape_ds.training.saving import save_checkpoint
from lape_ds.training.zero import engine_config, initialize, set_learning_rate, take_step
from tests.subnetwork.zero_cases import (
    ACCUMULATION,
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
    return engine_config(
        zero_stage=case.stage,
        dtype=case.dtype,
        offload_optimizer=case.offload,
        micro_batch_size=1,
        gradient_accumulation_steps=ACCUMULATION,
        gradient_clipping=MAX_NORM,
        extra={"zero_optimization": {"sub_group_size": case.sub_group_size} if case.sub_group_size else {}},
    )


def start(case: Case) -> tuple[deepspeed.DeepSpeedEngine, MaskedOptimizer]:
    model = tiny_model(case.model_type, dtype=getattr(torch, case.dtype))
    cls, settings = OPTIMIZERS[case.optimizer]
    optimizer = MaskedOptimizer(model, torch.tensor(NEURONS), cls, lr=learning_rate(0), **settings)
    return initialize(model, optimizer, config_of(case)), optimizer


def train(engine: deepspeed.DeepSpeedEngine, steps: range) -> list[float]:
    """Returns the gradient norm of each step."""
    norms = []
    for step in steps:
        set_learning_rate(engine, learning_rate(step))
        for input_ids in micro_batches(step, dist.get_world_size())[dist.get_rank()]:
            engine.backward(engine(input_ids=input_ids, labels=input_ids).loss)
            if engine.is_gradient_accumulation_boundary():
                norms.append(take_step(engine))
            else:
                engine.step()
    return norms


def gathered(engine: deepspeed.DeepSpeedEngine, stage: int) -> dict[str, Tensor]:
    """All weights, whole, on the CPU; every rank must enter this."""
    parameters = {name.removeprefix("module."): param for name, param in engine.named_parameters()}
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=stage == 3):
        return {name: param.detach().clone().cpu() for name, param in parameters.items()}


def run(case: Case, out: Path) -> None:
    engine, optimizer = start(case)
    predicted = memory_by_kind(engine, optimizer)
    norms = train(engine, range(STEPS))
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
    for name in ("masked", "full"):
        model = tiny_model("llama", dtype=torch.bfloat16)
        before = {key: param.detach().clone() for key, param in model.named_parameters()}
        settings = {"lr": 0.1, "weight_decay": 0.5}  # one step would halve a twentieth off
        trained = (
            MaskedOptimizer(model, torch.tensor(NEURONS), torch.optim.AdamW, **settings)
            if name == "masked"
            else DenseEntries(model, list(before), torch.optim.AdamW, **settings)
        )
        config = config_of(Case(0, dtype="bfloat16"))
        # The masked optimizer must withstand it alone, in a user's own loop; the others are protected by our set-up.
        if name == "masked":
            engine, *_ = deepspeed.initialize(model=model, optimizer=torch_optimizer(trained), config=config)
        else:
            engine = initialize(model, torch_optimizer(trained), config)
        moved = any(not torch.equal(param, before[key]) for key, param in model.named_parameters())
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
    """The same with lape-ds checkpoints, in bf16, for a mask and for whole weights."""
    same = {}
    for method in ("masked", "full"):
        for stage in (0, 1, 2, 3):
            case = Case(stage, dtype="bfloat16")
            whole, first = start_method(method, case)[0], start_method(method, case)
            train(whole, range(4))
            train(first[0], range(2))
            state = CheckpointState(2, "base", first[1].num_entries, {}, None)
            folder = save_checkpoint(out / f"{method}-{stage}", first[1], state)
            reader = CheckpointReader(folder)
            neurons = torch.tensor(NEURONS) if method == "masked" else None
            second = start_method(method, case, lambda model: write_entries(model, reader, neurons))  # noqa: B023
            second[1].load_entries(reader.read, reader.scalars)
            train(second[0], range(2, 4))
            weights = [gathered(engine, stage) for engine in (whole, second[0])]
            same[f"{method}-z{stage}"] = all(
                torch.equal(weights[0][name], weights[1][name]) for name in weights[0]
            )
            for engine in (whole, first[0], second[0]):
                engine.destroy()
    if dist.get_rank() == 0:
        (out / "our_checkpoints.json").write_text(json.dumps(same))


def start_method(
    method: str, case: Case, change: Callable[[PreTrainedModel], None] | None = None
) -> tuple[deepspeed.DeepSpeedEngine, Trained]:
    model = tiny_model("llama", dtype=torch.bfloat16)
    if change is not None:
        change(model)
    settings = {"lr": learning_rate(0), "weight_decay": 0.1}
    trained = (
        MaskedOptimizer(model, torch.tensor(NEURONS), torch.optim.AdamW, **settings)
        if method == "masked"
        else DenseEntries(
            model, [name for name, _ in model.named_parameters()], torch.optim.AdamW, **settings
        )
    )
    return initialize(model, torch_optimizer(trained), config_of(case)), trained


def main(out: Path) -> None:
    ranks.start()
    our_checkpoints(out)
    for case in all_cases():
        run(case, out)
    set_up_only(out)
    own_checkpoints(out)
    dist.barrier()
    ranks.end()
    ranks.leave(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert "RANK" in os.environ
    main(Path(sys.argv[1]))
