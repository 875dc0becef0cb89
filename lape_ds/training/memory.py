"""What one rank keeps in memory for training, by kind.

Printed at start, so that a user sees what the chosen ZeRO stage and method cost before the first step.
"""

from __future__ import annotations

from typing import Any

from deepspeed import DeepSpeedEngine
from torch import Tensor, nn

from lape_ds.model.ffn import full_shape
from lape_ds.subnetwork.masked import MaskedOptimizer
from lape_ds.subnetwork.methods import Trained

_MOMENTS = {"AdamW": 2, "Adam": 2, "SGD": 1, "Lion": 1}  # fp32 values kept for each entry


def memory_by_kind(engine: DeepSpeedEngine, trained: Trained) -> dict[str, int]:
    """Bytes on this rank: `weights`, `masters`, `gradients`, `moments`.

    Masters are DeepSpeed's fp32 copies (0 where it steps the weights themselves: stage 0 in fp32). Gradients are what it
    holds between backward and step. Moments are counted before they exist, by the optimizer's kind.
    """
    parameters = list(engine.parameters())
    buffers = {id(shard.buffer): shard.buffer for shard in trained.shards()}
    weights = {_stored(param).untyped_storage().data_ptr() for param in parameters}
    copies = [buffer for buffer in buffers.values() if buffer.untyped_storage().data_ptr() not in weights]
    return {
        "weights": sum(_bytes(_stored(param)) for param in parameters),
        "masters": sum(_bytes(buffer) for buffer in copies),
        "gradients": _gradient_bytes(engine, parameters, list(buffers.values())),
        "moments": 4 * _MOMENTS[_optimizer_name(trained)] * _num_owned(trained, list(buffers.values())),
    }


def num_parameters(engine: DeepSpeedEngine, trained: Trained) -> int:
    """Weights of the whole base model, however it is partitioned; what the method has put into it does not count."""
    return sum(full_shape(param).numel() for param in engine.parameters()) - trained.num_added


def describe_memory(engine: DeepSpeedEngine, trained: Trained) -> str:
    """One line for the log."""
    parameters = num_parameters(engine, trained)
    kinds = ", ".join(f"{kind} {_readable(size)}" for kind, size in memory_by_kind(engine, trained).items())
    share = 100 * trained.num_entries / parameters
    return f"training {trained.num_entries:,} of {parameters:,} weights ({share:.2f} %); rank 0 keeps {kinds}"


def _gradient_bytes(engine: DeepSpeedEngine, parameters: list[nn.Parameter], buffers: list[Tensor]) -> int:
    """Dense, also for a mask: DeepSpeed reduces whole tensors. Partitioned from stage 2 on."""
    if engine.zero_optimization_stage() >= 2:
        return sum(4 * buffer.numel() for buffer in buffers)
    trained = [param for param in parameters if param.requires_grad]
    size = 4 if engine.zero_optimization_stage() == 1 else trained[0].element_size()
    return sum(size * full_shape(param).numel() for param in trained)


def _optimizer_name(trained: Trained) -> str:
    optimizer: Any = trained.inner_class if isinstance(trained, MaskedOptimizer) else type(trained.optimizer)
    return optimizer.__name__


def _num_owned(trained: Trained, buffers: list[Tensor]) -> int:
    if isinstance(trained, MaskedOptimizer):
        return sum(len(held.masters) for held in trained.entry_ranges())
    return sum(buffer.numel() for buffer in buffers)


def _stored(param: nn.Parameter) -> Tensor:
    return getattr(param, "ds_tensor", param)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
