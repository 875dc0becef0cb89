"""DeepSpeed's configuration and set-up: the only module that writes them.

Between the recipe's `deepspeed:` block and the training loop.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Literal

import deepspeed
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder  # type: ignore[attr-defined]
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import nn

from lape_ds.errors import UserError
from lape_ds.model.experts import unhook_activations
from lape_ds.model.ffn import full_shape
from lape_ds.recipe import DeepSpeedSection, Recipe, TrainSection
from lape_ds.subnetwork.masked import masked_config

_DEFAULT_BUCKET = int(DeepSpeedZeroConfig.model_fields["reduce_bucket_size"].default)


def check_offload(section: DeepSpeedSection) -> None:
    """Refuses NVMe offload where DeepSpeed could not do it, before anything is loaded.

    Raises:
        UserError: libaio is missing, or the folder is not there.
    """
    if section.nvme_path is None:
        return
    if not section.nvme_path.is_dir():
        raise UserError(f"deepspeed.nvme_path={section.nvme_path}: no such folder; make it on the NVMe disk")
    if not AsyncIOBuilder().is_compatible():
        raise UserError(
            "deepspeed.offload_parameters: nvme needs libaio, with which DeepSpeed compiles its async_io (on Debian: apt install "
            "libaio-dev; elsewhere set CFLAGS and LDFLAGS); install it, or take cpu"
        )


def check_version(recipe: Recipe) -> None:
    """Refuses what the installed DeepSpeed cannot do, though pip was told which one is needed.

    Raises:
        UserError: Frozen weights under ZeRO-3 are recomputed, and DeepSpeed is older than 0.19.3.
    """
    train, installed = recipe.train, metadata.version("deepspeed")
    numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:3])
    freezes = train.method != "full"
    recomputes = train.gradient_checkpointing == "non_reentrant"
    if recipe.deepspeed.zero_stage == 3 and freezes and recomputes and numbers < (0, 19, 3):
        raise UserError(
            f"deepspeed {installed} fails in backward where frozen weights under ZeRO-3 are recomputed (mended in 0.19.3): run "
            "`pip install -U 'deepspeed>=0.19.3'` on every host, or set train.gradient_checkpointing=reentrant"
        )


def engine_config(
    train: TrainSection,
    section: DeepSpeedSection,
    *,
    dtype: Literal["float32", "bfloat16"],
    largest_part: int = 0,
    monitors: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Builds DeepSpeed's configuration; `deepspeed.config` is merged over it key by key.

    Gradients are accumulated and reduced in fp32 wherever DeepSpeed can (stages 1-3): a bf16 sum over micro-batches and
    ranks depends on how many of each there are, so two topologies would train two models.

    Args:
        train: The recipe's, as is the next.
        section: What the engine is told.
        dtype: Of the weights.
        largest_part: Elements that a rank holds of the largest weight; for `offload_parameters: nvme`.
        monitors: What `monitor_config` gives; None for none.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.gradient_accumulation_steps,
        "gradient_clipping": train.gradient_clipping,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": {"stage": section.zero_stage, **_offload_config(section, largest_part)},
        "communication_data_type": "fp32",
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        **(monitors or {}),
    }
    if section.zero_stage > 0:
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if section.zero_stage == 3:
        # Small models would otherwise be kept whole on every rank and stage 3 would not be exercised.
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return masked_config(_merged(config, section.config))


def forward_config(
    section: DeepSpeedSection, *, dtype: Literal["float32", "bfloat16", "float16"], largest_part: int
) -> dict[str, Any]:
    """Builds DeepSpeed's configuration of stage 3 for forward passes alone; `deepspeed.config` is merged over it.

    Args:
        section: Its offload of parameters holds here too.
        dtype: Of the weights.
        largest_part: As `engine_config`.
    """
    offload = _offload_config(section, largest_part)
    offload.pop("offload_optimizer", None)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == "bfloat16"},
        "fp16": {"enabled": dtype == "float16"},
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, **offload},
        "steps_per_print": None,
    }
    return _merged(config, section.config)


def initialize_forward(model: nn.Module, config: dict[str, Any]) -> deepspeed.DeepSpeedEngine:
    """Has the parts of a divided model gathered, layer by layer, whenever it is called. Every rank must enter this together."""
    unhook_activations(model)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    return engine


def _offload_config(section: DeepSpeedSection, largest_part: int) -> dict[str, Any]:
    """What `zero_optimization` says of where masters, moments and weights are kept."""
    pinned = {"pin_memory": torch.cuda.is_available()}
    config: dict[str, Any] = {}
    if section.offload_optimizer == "cpu":
        config["offload_optimizer"] = {"device": "cpu", **pinned}
    if section.offload_parameters != "none":
        config["offload_param"] = {"device": section.offload_parameters, **pinned}
    if section.offload_parameters == "nvme":
        # A part that is swapped in takes one of five buffers, whatever its size, until its layer is done. DeepSpeed 0.19.8 runs
        # out of them unless weights are read only when they are needed and let go at once ("Not enough buffers", and with
        # more of them "already assigned swap buffer"). Weights that train stay in host memory, beside their masters.
        config["offload_param"] |= {
            "nvme_path": str(section.nvme_path),
            "buffer_size": largest_part,
            "max_in_cpu": 10**15,
        }
        keys = ("max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")
        config |= {f"stage3_{key}": 0 for key in keys}
    return config


def monitor_config(recipe: Recipe) -> dict[str, Any]:
    """Where DeepSpeed's monitor sends the metrics beside `metrics.jsonl`.

    Raises:
        UserError: W&B is asked for and not installed.
    """
    train, config = recipe.train, dict[str, Any]()
    if train.tensorboard:
        config["tensorboard"] = {
            "enabled": True,
            "output_path": str(recipe.run_dir),
            "job_name": "tensorboard",
        }
    if train.wandb is not None:
        if find_spec("wandb") is None:
            raise UserError(
                "train.wandb is set but wandb is not installed; run `pip install wandb`, or unset it"
            )
        config["wandb"] = {"enabled": True, "project": train.wandb, "group": recipe.name}
    return config


def with_fitting_buckets(config: Mapping[str, Any], num_stepped: int) -> dict[str, Any]:
    """The configuration with reduce buckets no larger than all that is reduced, unless it says how large they are.

    DeepSpeed makes them at their full size, 500 M elements, however little trains. One that all gradients go into at once is as
    good as a larger one.

    Args:
        config: DeepSpeed's configuration.
        num_stepped: Elements of all weights that the optimizer is given.
    """
    zero = config["zero_optimization"]
    if "reduce_bucket_size" in zero or num_stepped >= _DEFAULT_BUCKET:
        return dict(config)
    return {**config, "zero_optimization": {**zero, "reduce_bucket_size": max(1, num_stepped)}}


def _merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in extra.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def initialize(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]
) -> deepspeed.DeepSpeedEngine:
    """Wraps the model in a DeepSpeed engine; the optimizer takes no step while that happens.

    Every rank must enter this together.
    """
    unhook_activations(model)
    stepped = [param for group in optimizer.param_groups for param in group["params"]]
    config = with_fitting_buckets(config, sum(full_shape(param).numel() for param in stepped))
    with _no_step(optimizer):
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


@contextmanager
def _no_step(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    # DeepSpeed's stage 0 in bf16 (FP16_UnfusedOptimizer) steps on zero gradients while it is set up: AdamW would shrink
    # its masters by 1 - lr * weight_decay and count a step. The state it wants to allocate so is made at the first real step.
    optimizer.step = lambda closure=None: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        del optimizer.step  # type: ignore[misc]


def take_step(engine: deepspeed.DeepSpeedEngine) -> float:
    """Takes the optimizer step after the last micro-batch's backward; returns the gradient norm before clipping.

    Every rank must enter this together.
    """
    norm = None
    if engine.zero_optimization_stage() == 0 and not engine.bfloat16_enabled():
        # This path of DeepSpeed clips without telling the norm. The gradients are already averaged over the ranks.
        norm = torch.nn.utils.get_total_norm([p.grad for p in engine.parameters() if p.grad is not None])
    engine.step()
    if norm is None:
        norm = engine.get_global_grad_norm()
    # None: a gradient overflowed, and DeepSpeed has left the step out.
    return float("inf") if norm is None else float(norm)


def set_learning_rate(engine: deepspeed.DeepSpeedEngine, rate: float) -> None:
    """Sets the learning rate of the next step for everything that trains."""
    for group in engine.optimizer.param_groups:  # type: ignore[union-attr]
        group["lr"] = rate
