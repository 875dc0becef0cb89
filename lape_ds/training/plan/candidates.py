"""Every way to run a method on a cluster, and what each costs.

After the profiles, before the report and `lape-ds tune`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from lape_ds.errors import UserError
from lape_ds.recipe import Recipe
from lape_ds.training.memory import Contents, Layout, StateBytes, largest_state_bytes, layout_by
from lape_ds.training.plan.cluster import (
    GPU_MEMORY_BANDWIDTH,
    HOST_BANDWIDTH,
    HOST_MEMORY_BANDWIDTH,
    Cluster,
)
from lape_ds.training.plan.gathers import Gathers, follow
from lape_ds.training.plan.profile import KINDS, Checkpointing, Profile
from lape_ds.training.zero import engine_config, with_fitting_buckets

Offload = Literal["none", "cpu"]
# Estimates closer than this are taken for equal.
_SAME_SPEED = 0.98
_STEP_BYTES = 28  # that a step of AdamW reads and writes for each fp32 entry: gradient, master, two moments


@dataclass(frozen=True)
class Setting:
    """What a plan may choose; the global batch stays the recipe's.

    Attributes:
        zero_stage: `deepspeed.zero_stage`.
        offload_optimizer: `deepspeed.offload_optimizer`.
        offload_parameters: `deepspeed.offload_parameters`.
        micro_batch_size: `train.micro_batch_size`.
        accumulation: `train.gradient_accumulation_steps`.
        checkpointing: `train.gradient_checkpointing`.
        num_ranks: `launch.num_ranks`, of one node.
    """

    zero_stage: int
    offload_optimizer: Offload
    offload_parameters: Offload
    micro_batch_size: int
    accumulation: int
    checkpointing: Checkpointing
    num_ranks: int

    def keys(self) -> dict[str, Any]:
        """As the recipe has them."""
        return {
            "train.micro_batch_size": self.micro_batch_size,
            "train.gradient_accumulation_steps": self.accumulation,
            "train.gradient_checkpointing": self.checkpointing,
            "deepspeed.zero_stage": self.zero_stage,
            "deepspeed.offload_optimizer": self.offload_optimizer,
            "deepspeed.offload_parameters": self.offload_parameters,
            "launch.num_ranks": self.num_ranks,
        }

    @property
    def overrides(self) -> list[str]:
        """For a command line."""
        return [f"{key}={value}" for key, value in self.keys().items()]

    @property
    def offload(self) -> str:
        """In a word."""
        moved = {"optimizer": self.offload_optimizer, "weights": self.offload_parameters}
        return "+".join(name for name, where in moved.items() if where == "cpu") or "–"


@dataclass(frozen=True)
class Candidate:
    """A method with a setting on a cluster.

    Attributes:
        method: As `method_names` calls it.
        setting: What a plan may choose.
        gpu: Bytes of the fullest GPU, by kind. Where there is none, a rank's, what it offloads included.
        peak: Of them, what is there at the worst moment of a step.
        host: Bytes that offload moves to each node.
        usable: Bytes of a GPU that tensors may take.
        host_memory: Bytes that a node has for it; None where that is not known.
        communication: Bytes that each GPU sends in a step.
        seconds: Of a step, estimated.
        tokens: Of a step.
    """

    method: str
    setting: Setting
    gpu: dict[str, int]
    peak: int
    host: int
    usable: int
    host_memory: int | None
    communication: int
    seconds: float
    tokens: int

    @property
    def fits(self) -> bool:
        """Whether a GPU has room for the worst moment, and its node for what is offloaded, if that is known."""
        return self.peak <= self.usable and self.fits_host

    @property
    def fits_host(self) -> bool:
        """The latter alone."""
        return self.host_memory is None or self.host <= self.host_memory

    @property
    def tokens_per_second(self) -> float:
        """Of all GPUs, estimated."""
        return self.tokens / self.seconds


class Costing:
    """Prices settings of one recipe on one cluster.

    Args:
        recipe: With its method.
        cluster: The machines.
    """

    def __init__(self, recipe: Recipe, cluster: Cluster) -> None:
        self.recipe, self.cluster = recipe, cluster
        self.element_size = 2 if recipe.model.dtype == "bfloat16" else 4
        self._followed: dict[int, Gathers] = {}  # by profile: offload and micro-batch change nothing

    @cached_property
    def global_batch_size(self) -> int:
        """Blocks of a step: as the recipe has them on so many nodes, or with these ranks if it does not say how many."""
        train, cluster = self.recipe.train, self.cluster
        ranks = cluster.nodes * (self.recipe.launch.num_ranks or cluster.gpus_per_node)
        return train.micro_batch_size * train.gradient_accumulation_steps * ranks

    def settings(self) -> list[Setting]:
        """All that keep the global batch.

        Raises:
            UserError: It cannot be shared by so many ranks.
        """
        blocks, ranks = self.global_batch_size, self.cluster.num_ranks
        if blocks % ranks:
            raise UserError(
                f"--gpus {self.cluster}: a step of {blocks} blocks cannot be shared by {ranks} ranks; plan for a divisor "
                f"of {blocks}, or set launch.num_ranks, train.micro_batch_size and train.gradient_accumulation_steps to others"
            )
        mine = blocks // ranks
        sizes = {self.recipe.train.micro_batch_size, *(2**power for power in range(mine.bit_length()))}
        micros = sorted(size for size in sizes if mine % size == 0)
        return [
            Setting(stage, optimizer, parameters, micro, mine // micro, kind, self.cluster.gpus_per_node)
            for (stage, optimizer, parameters), micro, kind in itertools.product(_stages(), micros, KINDS)
            if not (stage == 3 and self.recipe.train.torch_compile)
        ]

    def candidate(self, method: str, profile: Profile, setting: Setting) -> Candidate:
        """What a setting costs."""
        layout = self.layout(setting, profile.contents)
        state = largest_state_bytes(profile.contents, layout)
        gathers = self._gathers(profile, layout) if layout.stage == 3 else Gathers(0, 0)
        gpu = self._bytes(profile, setting, layout, state, gathers)
        resting = sum(
            gpu[kind]
            for kind in ("weights", "masters", "moments", "gradients", "offloaded", "anchor", "copied")
        )
        passing = gpu["buckets"] + gpu["gathers"] + gpu["activations"] + max(gpu["logits"], gpu["working"])
        sent, seconds = self._time(profile, setting, layout, state, gathers)
        return Candidate(
            method=method,
            setting=setting,
            gpu=gpu,
            peak=resting + max(passing, gpu["step"]),
            host=state.host * self.cluster.gpus_per_node,
            usable=self.cluster.usable,
            host_memory=self.cluster.host_memory,
            communication=sent,
            seconds=seconds,
            tokens=self.global_batch_size * profile.block_length,
        )

    def config(self, setting: Setting) -> dict[str, Any]:
        """What training would hand to DeepSpeed."""
        train, section = self.recipe.train, self.recipe.deepspeed
        train = train.model_copy(
            update={
                "micro_batch_size": setting.micro_batch_size,
                "gradient_accumulation_steps": setting.accumulation,
            }
        )
        chosen = {
            "zero_stage": setting.zero_stage,
            "offload_optimizer": setting.offload_optimizer,
            "offload_parameters": setting.offload_parameters,
            "config": _planned(section.config),
        }
        return engine_config(train, section.model_copy(update=chosen), dtype=self.recipe.model.dtype)

    def layout(self, setting: Setting, contents: Contents) -> Layout:
        """How DeepSpeed then spreads the state."""
        return layout_by(
            with_fitting_buckets(self.config(setting), contents.num_stepped),
            world_size=self.cluster.num_ranks,
            element_size=self.element_size,
            optimizer=self.recipe.train.optimizer.name,
        )

    def _gathers(self, profile: Profile, layout: Layout) -> Gathers:
        if id(profile) not in self._followed:
            self._followed[id(profile)] = follow(profile.uses, layout.zero)
        return self._followed[id(profile)]

    def _bytes(
        self, profile: Profile, setting: Setting, layout: Layout, state: StateBytes, gathers: Gathers
    ) -> dict[str, int]:
        blocks, anchor = setting.micro_batch_size, self.recipe.train.anchor
        tokens = blocks * profile.block_length
        base = 0
        if anchor.kl:  # the base, and its hidden states of what is replayed: at most of everything
            base = self.element_size * (profile.contents.num_parameters + tokens * profile.head.hidden_size)
        start = 0 if layout.offloads_optimizer or not anchor.l2 else state.masters or state.weights
        return {
            **state.on_gpu(layout),
            "offloaded": 0 if self.cluster.gpu else state.host,  # into the same memory
            "buckets": state.buckets + (state.copies if layout.stage >= 2 else 0),
            "gathers": self.element_size * gathers.live,
            "activations": int(profile.saved.of(blocks)) + profile.head.kept_bytes(tokens),
            "working": int(profile.working.of(blocks)),
            "logits": profile.head.logit_bytes(tokens, self.cluster.device, anchored=anchor.kl > 0),
            "step": max(state.step, state.copies if layout.stage < 2 else 0),
            "anchor": base + start,
            "copied": self._copied(layout, state),
        }

    def _copied(self, layout: Layout, state: StateBytes) -> int:
        """For `train.log_update_norms`: the fp32 entries once more, which are as large as one of their moments."""
        copies = self.recipe.train.log_update_norms and not layout.offloads_optimizer
        return state.moments // layout.moments if copies else 0

    def _time(
        self, profile: Profile, setting: Setting, layout: Layout, state: StateBytes, gathers: Gathers
    ) -> tuple[int, float]:
        """Bytes that a GPU sends in a step, and the step's seconds: nothing is assumed to overlap."""
        cluster, world = self.cluster, layout.world_size
        share, accumulation = (world - 1) / world, setting.accumulation
        stepped = profile.contents.num_stepped
        # fp32 gradients, all-reduced (twice the bytes) or reduce-scattered; from stage 2 on after every micro-batch.
        reduced = (
            4 * stepped * share * (1 if layout.stage == 3 else 2) * (accumulation if layout.stage >= 2 else 1)
        )
        gathered = self.element_size * share
        gathered *= gathers.fetched * accumulation if layout.stage == 3 else (stepped if layout.stage else 0)
        sent = int(reduced + gathered)
        tokens = setting.micro_batch_size * profile.block_length
        flops = profile.flops * setting.micro_batch_size + profile.head.flops(tokens)
        if self.recipe.train.anchor.kl:
            replayed = self.recipe.train.replay.share
            flops += replayed * (
                profile.forward_flops * setting.micro_batch_size + profile.head.flops(tokens) / 2
            )
        seconds = accumulation * flops / cluster.flops(self.element_size) + sent / cluster.bandwidth
        return sent, seconds + self._step_seconds(layout, state, gathers, accumulation)

    def _step_seconds(self, layout: Layout, state: StateBytes, gathers: Gathers, accumulation: int) -> float:
        entries = state.moments / (4 * layout.moments)
        on_host = layout.offloads_optimizer or not self.cluster.gpu
        speed = HOST_MEMORY_BANDWIDTH / self.cluster.gpus_per_node if on_host else GPU_MEMORY_BANDWIDTH
        seconds = _STEP_BYTES * entries / speed
        if layout.offloads_optimizer and self.cluster.gpu:
            seconds += state.masters * (accumulation if layout.stage >= 2 else 1) / HOST_BANDWIDTH
            seconds += state.masters * self.element_size / 4 / HOST_BANDWIDTH
        if layout.offloads_parameters and self.cluster.gpu:
            fetched = self.element_size * gathers.fetched / layout.world_size
            seconds += accumulation * fetched / HOST_BANDWIDTH
        return seconds


def best_of(candidates: Iterable[Candidate], recipe: Recipe) -> list[Candidate]:
    """Those that fit, best first: the fastest, and of those about as fast the one that is easier on the machine.

    With bf16 weights stage 0 comes last among equals: there DeepSpeed adds up gradients in bf16.
    """
    left = [candidate for candidate in candidates if candidate.fits]
    ranked: list[Candidate] = []
    while left:
        fastest = max(candidate.tokens_per_second for candidate in left)
        equal = [one for one in left if one.tokens_per_second >= _SAME_SPEED * fastest]
        ranked += sorted(equal, key=lambda one: _preference(one, recipe))
        left = [one for one in left if one.tokens_per_second < _SAME_SPEED * fastest]
    return ranked


def _preference(candidate: Candidate, recipe: Recipe) -> tuple[Any, ...]:
    setting = candidate.setting
    return (
        setting.zero_stage == 0 and recipe.model.dtype == "bfloat16",
        setting.offload_optimizer != "none",
        setting.offload_parameters != "none",
        -setting.micro_batch_size,  # fewer and larger products than the estimate knows of
        candidate.peak,
    )


def _stages() -> Iterator[tuple[int, Offload, Offload]]:
    for stage in (0, 1, 2, 3):
        yield stage, "none", "none"
        if stage > 0:
            yield stage, "cpu", "none"
        if stage == 3:
            yield stage, "none", "cpu"
            yield stage, "cpu", "cpu"


def _planned(config: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's own DeepSpeed settings, but for offload: that is what the plan decides."""
    zero = dict(config.get("zero_optimization", {}))
    for key in ("offload_param", "offload_optimizer"):
        zero.pop(key, None)
    return {**config, "zero_optimization": zero}
