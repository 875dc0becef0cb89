"""Which keys of DeepSpeed's configuration a recipe's `deepspeed.config` may hold.

Part of the recipe's validation, before anything is loaded: DeepSpeed itself ignores a misspelt top-level key.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

# DeepSpeed's key -> the recipe's key that decides it.
OWNED_KEYS = {
    "amp": "model.dtype",
    "bf16": "model.dtype",
    "bfloat16": "model.dtype",
    "fp16": "model.dtype",
    "torch_autocast": "model.dtype",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "gradient_clipping": "train.gradient_clipping",
    "optimizer": "train.optimizer",
    "scheduler": "train.schedule",
    "tensorboard": "train.tensorboard",
    "train_batch_size": "train.micro_batch_size and train.gradient_accumulation_steps",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "wandb": "train.wandb",
    "zero_allow_untested_optimizer": "train.method",
    "zero_force_ds_cpu_optimizer": "deepspeed.offload_optimizer",
    "zero_optimization.compute_grad_norm": "train.gradient_clipping",
    "zero_optimization.cpu_offload": "deepspeed.offload_optimizer",
    "zero_optimization.cpu_offload_param": "deepspeed.offload_parameters",
    "zero_optimization.save_muon_momentum_buffer_in_memory": "train.optimizer",
    "zero_optimization.stage": "deepspeed.zero_stage",
    "zero_optimization.zenflow": "train.optimizer",
}

# Source: deepspeed/runtime/config.py and constants.py of DeepSpeed 0.19.8, without the owned keys.
_TOP_LEVEL = """
activation_checkpointing aio autotuning checkpoint comet comms_logger communication_data_type compile
compression_training csv_monitor curriculum_learning data_efficiency data_types dataloader_drop_last
disable_allgather disable_python_gc dump_state elasticity eigenvalue expert_data_topo flops_profiler
gradient_allreduce_op gradient_predivide_factor hybrid_engine log_level memory_breakdown nebula
optimizer_legacy_fusion pipeline prescale_gradients progressive_layer_drop
seq_parallel_communication_data_type sparse_gradients steps_per_print tensor_parallel timers
use_data_before_expert_parallelism wall_clock_breakdown zero_optimization
""".split()

# Source: deepspeed/runtime/zero/config.py of DeepSpeed 0.19.8.
_ZERO = """
allgather_bucket_size allgather_partitions contiguous_gradients cpu_offload_use_pin_memory
elastic_checkpoint enable_sanity_checks ignore_unused_parameters leaf_module legacy_stage1
load_from_fp32_weights log_trace_cache_warnings memory_efficient_linear offload_optimizer offload_param
overlap_comm override_module_apply parameter_alignment pipeline_loading_checkpoint reduce_bucket_size
reduce_scatter round_robin_gradients stage3_allgather_sequential stage3_gather_16bit_weights_on_model_save
stage3_gather_fp16_weights_on_model_save stage3_max_live_parameters stage3_max_reuse_distance
stage3_model_persistence_threshold stage3_module_granularity_threshold stage3_param_persistence_threshold
stage3_prefetch_bucket_size stage3_use_all_reduce_for_fetch_params sub_group_size
use_multi_rank_bucket_allreduce zero_hpz_partition_size zero_quantized_gradients
zero_quantized_nontrainable_weights zero_quantized_weights
""".split()


# Under zero_optimization: what DeepSpeed would take and lape-ds cannot work with.
_WRONG = {
    "round_robin_gradients": "reorders the partitions without telling which weights lie where, so neither a neuron mask nor a "
    "checkpoint would find its own",
    "zero_quantized_nontrainable_weights": "has no effect: weights are partitioned before it is known which of them train",
    "zero_quantized_weights": "keeps weights that differ from their masters, so what does not train would not stay as it was",
}


def check_engine_keys(config: Mapping[str, Any]) -> None:
    """Refuses keys that the recipe decides elsewhere, and keys that DeepSpeed does not have.

    Raises:
        ValueError: One line: the key, and what to write instead.
    """
    _refuse_universal(config)
    _check(config, prefix="", known=_TOP_LEVEL)
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        raise ValueError(f"zero_optimization must be a mapping, not {zero!r}")
    _check(zero, prefix="zero_optimization.", known=_ZERO)
    for key, why in _WRONG.items():
        if zero.get(key):
            raise ValueError(f"zero_optimization.{key}: {str(zero[key]).lower()} {why}; remove it")
    _check_offload(zero)


def _check_offload(zero: Mapping[str, Any]) -> None:
    offload = zero.get("offload_optimizer", {})
    if isinstance(offload, Mapping) and offload.get("device") == "nvme":
        raise ValueError(
            "zero_optimization.offload_optimizer.device: nvme swaps masters out of reach of checkpoints and of a neuron mask; "
            "set deepspeed.offload_optimizer: cpu instead (weights may go to nvme: deepspeed.offload_parameters)"
        )
    taken = {
        "offload_optimizer.device": "offload_optimizer",
        "offload_param.device": "offload_parameters",
        "offload_param.nvme_path": "nvme_path",
    }
    for key, ours in taken.items():
        block, name = key.split(".")
        if isinstance(zero.get(block), Mapping) and name in zero[block]:
            raise ValueError(
                f"zero_optimization.{key} is decided by deepspeed.{ours}: remove it here, set that instead"
            )


def _refuse_universal(config: Mapping[str, Any]) -> None:
    """DeepSpeed's way to another topology: it takes dense moments for granted, and our runs have none to convert."""
    section = config.get("checkpoint", {})
    nested = isinstance(section, Mapping) and section.get("load_universal")
    if nested or "load_universal_checkpoint" in config:
        key = "checkpoint.load_universal" if nested else "load_universal_checkpoint"
        raise ValueError(
            f"{key} asks for DeepSpeed's universal checkpoint, which a neuron mask's compact state does not fit and no run here "
            "writes; remove it: runs go on with other ranks, in another ZeRO stage and with the other engine as they are"
        )


def _check(config: Mapping[str, Any], *, prefix: str, known: Sequence[str]) -> None:
    for key in config:
        if prefix + key in OWNED_KEYS:
            raise ValueError(
                f"{prefix}{key} is decided by {OWNED_KEYS[prefix + key]}: remove it here, set that instead"
            )
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ValueError(f"DeepSpeed has no key {prefix}{key}{hint}")
