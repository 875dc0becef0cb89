"""One rank of the masked engine's tests: runs every case, one after another, and writes what came out."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from lape_ds.subnetwork.masked import MaskedOptimizer
from lape_ds.training import ranks
from lape_ds.training.zero import engine_config, initialize, take_step
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


def run(case: Case, out: Path) -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = tiny_model(case.model_type, dtype=getattr(torch, case.dtype))
    cls, settings = OPTIMIZERS[case.optimizer]
    optimizer = MaskedOptimizer(model, torch.tensor(NEURONS, dtype=torch.int32), cls, lr=learning_rate(0), **settings)
    zero = {"sub_group_size": case.sub_group_size} if case.sub_group_size else {}
    config = engine_config(
        zero_stage=case.stage,
        dtype=case.dtype,  # type: ignore[arg-type]
        offload_optimizer=case.offload,  # type: ignore[arg-type]
        micro_batch_size=1,
        gradient_accumulation_steps=ACCUMULATION,
        gradient_clipping=MAX_NORM,
        extra={"zero_optimization": zero},
    )
    engine = initialize(model, optimizer, config)
    norms = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        for input_ids in micro_batches(step, world_size)[rank]:
            engine.backward(engine(input_ids=input_ids, labels=input_ids).loss)
            if engine.is_gradient_accumulation_boundary():
                norms.append(take_step(engine))
            else:
                engine.step()
    moments = sum(
        value.numel() * value.element_size() for held in optimizer.entry_ranges() for value in held.state.values()
    )
    sizes: list[int] = [0] * world_size
    dist.all_gather_object(sizes, moments)
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=case.stage == 3):
        weights = {name: param.detach().clone().cpu() for name, param in model.named_parameters()}
    if rank == 0:
        save_file(weights, out / f"{case.name}.safetensors")
        (out / f"{case.name}.json").write_text(json.dumps({"norms": norms, "moment_bytes": sizes}))
    engine.destroy()


def main(out: Path) -> None:
    ranks.start()
    for case in all_cases():
        run(case, out)
    ranks.end()


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert "RANK" in os.environ
    main(Path(sys.argv[1]))
