"""One rank that fills skeletons from folders and compares its parts with whole models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from lape_ds.distributed import ranks
from lape_ds.errors import UserError
from lape_ds.model.loading import load_model, load_skeleton
from lape_ds.recipe import DeepSpeedSection, TrainSection
from lape_ds.training.partitioned import fill_partitioned
from lape_ds.training.zero import engine_config


def config_of(dtype: str, **section: Any) -> dict[str, Any]:
    train = TrainSection(micro_batch_size=1, gradient_clipping=0)
    made = DeepSpeedSection.model_validate({"zero_stage": 3, **section})
    return engine_config(train, made, dtype="bfloat16" if dtype == "bfloat16" else "float32")


def filled(folder: Path, dtype: str, **section: Any) -> PreTrainedModel:
    model = load_skeleton(folder, dtype=getattr(torch, dtype), attn_implementation="eager")
    fill_partitioned(model, folder, config_of(dtype, **section))
    return model


def same(one: Tensor, other: Tensor) -> bool:
    as_bytes = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*as_bytes)


def compare(model: PreTrainedModel, whole: PreTrainedModel) -> list[str]:
    """What is wrong with this rank's parts, with the whole weights gathered again, and with the buffers."""
    parameters, expected = dict(model.named_parameters()), dict(whole.named_parameters())
    wrong = [] if parameters.keys() == expected.keys() else ["names"]
    for name, weight in expected.items():
        flat = weight.detach().view(-1)
        size = -(-flat.numel() // dist.get_world_size())
        mine = flat[dist.get_rank() * size : (dist.get_rank() + 1) * size]
        held: Any = parameters[name].ds_tensor  # type: ignore[attr-defined]
        wrong += [] if held.numel() == size and same(held[: len(mine)], mine) else [f"part of {name}"]
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        wrong += [name for name, weight in expected.items() if not same(parameters[name], weight)]
    buffers = dict(model.named_buffers())
    wrong += [] if buffers.keys() == dict(whole.named_buffers()).keys() else ["names of buffers"]
    return wrong + [name for name, buffer in whole.named_buffers() if not same(buffers[name], buffer)]


def main(cases: Path) -> None:
    ranks.start()
    out: dict[str, Any] = {}
    for case in json.loads(cases.read_text()):
        here = Path(case["folders"][min(ranks.rank(), len(case["folders"]) - 1)])
        try:
            model = filled(here, case["dtype"], **case.get("deepspeed", {}))
        except UserError as error:
            out[case["name"]] = {"error": str(error)}
            continue
        whole = load_model(here, dtype=case["dtype"], attn_implementation="eager")
        out[case["name"]] = {"wrong": compare(model, whole)}
    cases.with_name(f"{cases.stem}-{ranks.rank()}.json").write_text(json.dumps(out))
    dist.barrier()
    ranks.end()
    ranks.leave(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
