"""What one rank keeps in memory for what trains, by kind: the one place that knows what DeepSpeed allocates.

Told at the start of a training, and added up by the plan (plan/) before there is one. Everything is counted from sizes, so
neither weights nor an engine are needed. Read in DeepSpeed 0.19.8; held to the engine's own tensors in
tests/training/plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deepspeed import DeepSpeedEngine
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import nn

from lape_ds.distributed.ranks import rank, world_size
from lape_ds.model.ffn import full_shape
from lape_ds.runlog import readable_bytes
from lape_ds.subnetwork.entries import Mask
from lape_ds.subnetwork.masked import MaskedOptimizer
from lape_ds.subnetwork.methods import Trained

# fp32 values that the optimizer keeps for each entry, by its name in a recipe.
MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1, "lion": 1}
_FP32 = 4


@dataclass(frozen=True)
class TrainedTensor:
    """A tensor that DeepSpeed keeps masters and gradients of.

    Attributes:
        numel: Its elements, however it is partitioned.
        mask: The entries of it that train; None where all do.
    """

    numel: int
    mask: Mask | None = None

    def entries(self, start: int, stop: int) -> int:
        """How many of its flattened elements [start, stop) train."""
        start, stop = min(start, self.numel), min(stop, self.numel)
        if self.mask is None:
            return stop - start
        return self.mask.entries_before(stop) - self.mask.entries_before(start)


@dataclass(frozen=True)
class Contents:
    """What a model consists of once a method has been put into it.

    Attributes:
        weights: Elements of every parameter, adapters and slices included.
        trained: Those that DeepSpeed steps, in the optimizer's order.
        num_entries: Weights that train.
        num_added: Those of them that the base model does not have.
    """

    weights: tuple[int, ...]
    trained: tuple[TrainedTensor, ...]
    num_entries: int
    num_added: int

    @property
    def num_parameters(self) -> int:
        """Weights of the base model."""
        return sum(self.weights) - self.num_added

    @property
    def num_stepped(self) -> int:
        """Elements of all tensors that DeepSpeed steps."""
        return sum(tensor.numel for tensor in self.trained)


def contents_of(model: nn.Module, trained: Trained) -> Contents:
    """Counts a model that `prepare` has been through: partitioned or not, with values or on the meta device."""
    masks = list(trained.masks.values()) if isinstance(trained, MaskedOptimizer) else None
    tensors = [
        TrainedTensor(full_shape(param).numel(), None if masks is None else masks[number])
        for number, param in enumerate(trained.parameters)
    ]
    weights = tuple(full_shape(param).numel() for param in model.parameters())
    return Contents(weights, tuple(tensors), trained.num_entries, trained.num_added)


@dataclass(frozen=True)
class Layout:
    """How DeepSpeed spreads it.

    Attributes:
        zero: DeepSpeed's own reading of `zero_optimization`, with its defaults.
        world_size: Ranks.
        element_size: Bytes of a weight.
        moments: Values that the optimizer keeps for each entry.
        accumulation: Micro-batches of a step.
    """

    zero: DeepSpeedZeroConfig
    world_size: int
    element_size: int
    moments: int
    accumulation: int = 1

    @property
    def stage(self) -> int:
        """Of ZeRO."""
        return int(self.zero.stage)

    @property
    def offloads_optimizer(self) -> bool:
        """Whether masters and moments are on the host."""
        return self.zero.offload_optimizer is not None and self.zero.offload_optimizer.device != "none"

    @property
    def offloads_parameters(self) -> bool:
        """Whether weights are on the host while no layer computes with them."""
        return self.zero.offload_param is not None and self.zero.offload_param.device != "none"

    @property
    def offloads_gradients(self) -> bool:
        """Whether they are summed up on the host: stages 1 and 2 do that on the GPU, but for stage 2 in fp32."""
        summed = self.stage == 3 or (self.stage == 2 and self.element_size == _FP32)
        return self.offloads_optimizer and summed

    @property
    def uses_bf16_optimizer(self) -> bool:
        """Whether DeepSpeed takes its BF16_Optimizer, which keeps the gradients of all ranks in fp32."""
        return self.stage == 1 and self.element_size == 2 and not self.offloads_optimizer


@dataclass(frozen=True)
class StateBytes:
    """Bytes of one rank, wherever they are.

    Attributes:
        weights: Of the model and what was put into it.
        masters: DeepSpeed's fp32 copies; 0 where it steps the weights themselves (stage 0 in fp32).
        gradients: Between backward and step.
        moments: From the first step on.
        buckets: In which DeepSpeed collects gradients to reduce them, in backward.
        copies: Of what is reduced at a time: during backward from stage 2 on, else behind it.
        step: What a step takes beside all that: the gradient once more, and torch's temporaries.
        host: Of these, and of what DeepSpeed keeps beside them, on the host.
    """

    weights: int
    masters: int
    gradients: int
    moments: int
    buckets: int
    copies: int
    step: int
    host: int

    def on_gpu(self, layout: Layout) -> dict[str, int]:
        """What is left there of the first four kinds."""
        off_parameters, off_optimizer = layout.offloads_parameters, layout.offloads_optimizer
        return {
            "weights": 0 if off_parameters else self.weights,
            "masters": 0 if off_optimizer else self.masters,
            "moments": 0 if off_optimizer else self.moments,
            "gradients": 0 if layout.offloads_gradients else self.gradients,
        }


def state_bytes(contents: Contents, layout: Layout, rank: int) -> StateBytes:
    """What rank number `rank` keeps."""
    stage, size = layout.stage, layout.element_size
    parts = list(_parts(contents, layout, rank))
    own = sum(stop - start for _, start, stop in parts)  # elements of masters, padding included
    entries = sum(
        tensor.entries(start, stop) if tensor.mask is not None else stop - start
        for tensor, start, stop in parts
    )
    numels = contents.weights
    weights = size * sum(math.ceil(n / layout.world_size) if stage == 3 else n for n in numels)
    moments = _FP32 * layout.moments * entries
    return StateBytes(
        weights=weights,
        masters=0 if stage == 0 and size == _FP32 else _FP32 * own,
        gradients=_gradients(contents, layout, own),
        moments=moments,
        buckets=_buckets(layout),
        copies=_copies(contents, layout),
        step=_step(layout, own, entries, masked=_is_masked(contents)),
        host=_host(layout, weights, own, moments),
    )


def largest_state_bytes(contents: Contents, layout: Layout) -> StateBytes:
    """What the rank keeps that keeps the most: entries of a mask are spread unevenly."""
    ranks = range(layout.world_size) if _is_masked(contents) else range(1)
    return max((state_bytes(contents, layout, rank) for rank in ranks), key=lambda found: found.moments)


def _is_masked(contents: Contents) -> bool:
    return any(tensor.mask is not None for tensor in contents.trained)


def _parts(contents: Contents, layout: Layout, rank: int) -> Iterator[tuple[TrainedTensor, int, int]]:
    """Which elements of which trained tensor a rank steps; a part may reach into padding."""
    world = layout.world_size
    if layout.stage == 0:
        yield from ((tensor, 0, tensor.numel) for tensor in contents.trained)
    elif layout.stage == 3:  # every tensor is padded and cut by itself
        for tensor in contents.trained:
            part = math.ceil(tensor.numel / world)
            yield tensor, rank * part, (rank + 1) * part
    else:  # all of them one after another, aligned to two elements a rank, and cut once
        part = 2 * math.ceil(contents.num_stepped / (2 * world))
        begin, end, position = rank * part, (rank + 1) * part, 0
        for number, tensor in enumerate(contents.trained):
            is_last = number == len(contents.trained) - 1
            start = max(begin - position, 0)
            stop = end - position if is_last else min(end - position, tensor.numel)
            if start < stop:
                yield tensor, start, stop
            position += tensor.numel


def _gradients(contents: Contents, layout: Layout, own: int) -> int:
    """Dense also for a mask: DeepSpeed reduces whole tensors. Partitioned from stage 2 on, in fp32 from stage 1 on."""
    if layout.stage >= 2:
        return _FP32 * own
    if layout.uses_bf16_optimizer:  # the sum in fp32, and the last micro-batch's in bf16
        return (_FP32 + layout.element_size) * contents.num_stepped
    return (_FP32 if layout.stage == 1 else layout.element_size) * contents.num_stepped


def _buckets(layout: Layout) -> int:
    """They have their full size however little is in them (zero.py sees to it that they are no larger than need be)."""
    zero, size = layout.zero, layout.element_size
    if layout.stage == 0 or layout.uses_bf16_optimizer or not zero.contiguous_gradients:
        return 0
    bucket = int(zero.reduce_bucket_size)
    if layout.stage == 3:
        return _FP32 * bucket
    return (_FP32 if layout.stage == 1 else size) * bucket * (2 if zero.overlap_comm else 1)


def _copies(contents: Contents, layout: Layout) -> int:
    """Of what is in a bucket, to reduce it in fp32; and what offload takes on the way to the host."""
    size, stepped = layout.element_size, contents.num_stepped
    if layout.stage == 0 or layout.uses_bf16_optimizer:
        # The engine's own all-reduce: a flat copy of up to 500 M elements, in fp32 beside the one in the weights' dtype.
        reduced = min(500_000_000, stepped)
        return reduced * (_FP32 if layout.stage or size == _FP32 else _FP32 + size)
    largest = max(tensor.numel for tensor in contents.trained)
    filled = min(stepped, max(int(layout.zero.reduce_bucket_size), largest))  # a larger tensor goes by itself
    if layout.stage == 3:  # the parts of all ranks are put in order
        return _FP32 * filled
    collected = _FP32 if layout.stage == 1 else size  # one flat copy, and one in fp32 unless it is that
    copied = (collected + (_FP32 if collected != _FP32 else 0)) * filled
    return copied + (size * largest if layout.offloads_optimizer else 0)


def _host(layout: Layout, weights: int, own: int, moments: int) -> int:
    """Masters, their `.grad` and moments. Stage 3 sums up gradients in one more buffer, stage 2 in fp32 does too.

    Stages 1 and 2 also have the new weights there before they go to the GPU.
    """
    host = weights if layout.offloads_parameters else 0
    if not layout.offloads_optimizer:
        return host
    collected = _FP32 if layout.stage == 3 else layout.element_size
    if layout.stage == 2 and layout.offloads_gradients and layout.accumulation > 1:
        collected += layout.element_size
    return host + moments + (2 * _FP32 + collected) * own


def _step(layout: Layout, own: int, entries: int, *, masked: bool) -> int:
    """On the GPU. torch's optimizers work on all tensors of a group at once and take one temporary as large as these."""
    if layout.offloads_optimizer:
        return 0
    if masked:  # masters and gradients of the entries are gathered, and stepped apart from the dense ones
        return _FP32 * (own if _copies_gradients(layout) else 0) + 3 * _FP32 * entries
    at_once = min(own, int(layout.zero.sub_group_size)) if layout.stage == 3 else own
    return _FP32 * at_once * (2 if _copies_gradients(layout) else 1)


def _copies_gradients(layout: Layout) -> bool:
    """Whether a step begins with the gradient's own copy, in fp32 and in one piece."""
    if layout.stage == 0:
        return layout.element_size != _FP32
    return layout.stage == 3 or (layout.element_size == _FP32)


def memory_by_kind(engine: DeepSpeedEngine, trained: Trained) -> dict[str, int]:
    """Bytes on this rank: `weights`, `masters`, `gradients`, `moments`, on the GPU or where offload puts them."""
    found = state_bytes(contents_of(engine, trained), layout_of(engine, trained), rank())
    return {kind: getattr(found, kind) for kind in ("weights", "masters", "gradients", "moments")}


def layout_of(engine: DeepSpeedEngine, trained: Trained) -> Layout:
    """That of a live engine."""
    optimizer: Any = trained.inner_class if isinstance(trained, MaskedOptimizer) else type(trained.optimizer)
    config: Any = engine._config
    return Layout(
        zero=config.zero_config,
        world_size=world_size(),
        element_size=trained.parameters[0].element_size(),
        moments=MOMENTS[optimizer.__name__.lower()],
        accumulation=engine.gradient_accumulation_steps(),
    )


def layout_by(config: Mapping[str, Any], *, world_size: int, element_size: int, optimizer: str) -> Layout:
    """That of an engine which `engine_config` would set up.

    Args:
        config: DeepSpeed's configuration.
        world_size: Ranks.
        element_size: Bytes of a weight.
        optimizer: Its name in the recipe.
    """
    return Layout(
        zero=DeepSpeedZeroConfig(**config["zero_optimization"]),
        world_size=world_size,
        element_size=element_size,
        moments=MOMENTS[optimizer],
        accumulation=config["gradient_accumulation_steps"],
    )


def describe_memory(engine: DeepSpeedEngine, trained: Trained) -> str:
    """One line for the log."""
    contents = contents_of(engine, trained)
    kinds = ", ".join(
        f"{kind} {readable_bytes(size)}" for kind, size in memory_by_kind(engine, trained).items()
    )
    share = 100 * contents.num_entries / contents.num_parameters
    return f"training {contents.num_entries:,} of {contents.num_parameters:,} weights ({share:.2f} %); rank 0 keeps {kinds}"
