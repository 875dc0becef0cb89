"""One rank of the chunked loss' tests: trains every case for some steps and writes the weights that came out."""

from __future__ import annotations

import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from lape_ds.distributed import ranks
from lape_ds.model.loss import LanguageModelLoss
from lape_ds.recipe import DeepSpeedSection, TrainSection
from lape_ds.training.zero import engine_config, initialize, take_step
from tests.model.zero_loss_cases import (
    LEARNING_RATE,
    STEPS,
    Case,
    all_cases,
    batches,
    num_scored,
    trained_names,
)


def run(case: Case, out: Path) -> None:
    model = case.model()
    parameters = dict(model.named_parameters())
    trained = trained_names(case, model)
    for name, param in parameters.items():
        param.requires_grad_(name in trained)
    optimizer = torch.optim.SGD([parameters[name] for name in trained], lr=LEARNING_RATE)
    section = DeepSpeedSection.model_validate({"zero_stage": case.stage})
    config = engine_config(TrainSection(micro_batch_size=1, gradient_clipping=0), section, dtype="float32")
    engine = initialize(LanguageModelLoss(model), optimizer, config)
    for step in range(STEPS):
        ids, targets = batches(step)
        mine = slice(dist.get_rank(), None, dist.get_world_size())
        total, _ = engine(input_ids=ids[mine], targets=targets[mine])
        engine.backward(total * (dist.get_world_size() / num_scored(step)))
        take_step(engine)
    with deepspeed.zero.GatheredParameters(list(parameters.values()), enabled=case.stage == 3):
        weights = {name: param.detach().clone() for name, param in parameters.items()}
    if dist.get_rank() == 0:
        save_file(weights, out / f"{case.name}.safetensors")
    engine.destroy()


def main(out: Path) -> None:
    ranks.start()
    for case in all_cases():
        run(case, out)
    dist.barrier()
    ranks.end()
    ranks.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
