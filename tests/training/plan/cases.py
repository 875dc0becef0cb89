"""What the plan is held to, shared by the worker that measures and the test that judges."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lape_ds.recipe import Recipe, load_recipe
from lape_ds.training.plan.candidates import Offload, Setting
from lape_ds.training.plan.profile import Checkpointing

WORLD_SIZE = 2
ACCUMULATION = 2
BLOCKS = 2
SIZES = {
    "small": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "vocab_size": 512},
    "large": {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6, "vocab_size": 1024},
}
LLAMA = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
RECIPE = """
name: plan
output_dir: {folder}/out
languages: {{target: mt, identify: [mt, en, ka]}}
model: {{path: {folder}/{size}, dtype: {dtype}}}
corpus: {{source: {{kind: cldr}}}}
train: {{block_length: 48, micro_batch_size: 2, gradient_accumulation_steps: 2}}
deepspeed:
  config:
    zero_optimization:
{bucket}      stage3_max_reuse_distance: {reuse}
      stage3_prefetch_bucket_size: 9000
launch: {{num_ranks: 2}}
"""


@dataclass(frozen=True)
class Case:
    size: str
    stage: int
    method: str = "subnetwork"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    offload_optimizer: Offload = "none"
    offload_parameters: Offload = "none"
    checkpointing: Checkpointing = "none"
    own_buckets: bool = True
    reuse: int = 40_000  # elements: some weights stay whole until backward, most do not

    @property
    def name(self) -> str:
        parts = [self.size, f"z{self.stage}", self.method, self.dtype, self.checkpointing]
        parts += [] if self.own_buckets else ["fitting-buckets"]
        parts += ["optimizer-on-host"] if self.offload_optimizer == "cpu" else []
        parts += ["weights-on-host"] if self.offload_parameters == "cpu" else []
        return "-".join([*parts, *(["all-reused"] if self.reuse > 10**6 else [])])

    def recipe(self, folder: Path) -> Recipe:
        path = folder / f"{self.size}-{self.dtype}-{self.reuse}-{self.own_buckets}.yaml"
        bucket = "      reduce_bucket_size: 30000\n" if self.own_buckets else ""
        text = RECIPE.format(folder=folder, size=self.size, dtype=self.dtype, reuse=self.reuse, bucket=bucket)
        if not path.exists():
            path.write_text(text, encoding="utf-8")
        return load_recipe(path)

    @property
    def setting(self) -> Setting:
        return Setting(
            self.stage,
            self.offload_optimizer,
            self.offload_parameters,
            BLOCKS,
            ACCUMULATION,
            self.checkpointing,
            WORLD_SIZE,
        )


def all_cases() -> list[Case]:
    """Every stage with every kind of what trains, at both sizes; the rest at one of them."""
    cases = [
        Case(size, stage, method)
        for size in SIZES
        for stage in (0, 1, 2, 3)
        for method in ("subnetwork", "masked", "full")
    ]
    for stage in (0, 1, 2, 3):
        cases += [Case("small", stage, "full", "float32"), Case("large", stage, "subnetwork", "float32")]
    cases += [Case("small", 2, method) for method in ("ffn", "lora", "ia3")]
    cases += [Case("large", 3, "lora"), Case("small", 3, "full", reuse=10**9)]
    cases += [Case("small", stage, own_buckets=False) for stage in (2, 3)]
    kinds = [
        ("small", 2, "subnetwork"),
        ("large", 3, "subnetwork"),
        ("small", 3, "full"),
        ("large", 1, "full"),
    ]
    cases += [Case(size, stage, method, checkpointing="non_reentrant") for size, stage, method in kinds]
    offloaded: list[tuple[int, Offload, Offload]] = [(stage, "cpu", "none") for stage in (1, 2, 3)]
    for stage, optimizer, parameters in [*offloaded, (3, "none", "cpu"), (3, "cpu", "cpu")]:
        cases += [
            Case(size, stage, method, offload_optimizer=optimizer, offload_parameters=parameters)
            for size, method in (("small", "masked"), ("large", "full"))
        ]
    return [*cases, Case("small", 2, "full", "float32", offload_optimizer="cpu")]


def is_short(case: Case) -> bool:
    """Whether a case is always run: the small model's, and of the large one's those that the small one has not."""
    return case.size == "small" or case.name in LARGE


LARGE = (
    "large-z2-full-bfloat16-none",
    "large-z3-subnetwork-bfloat16-none",
    "large-z3-lora-bfloat16-none",
    "large-z3-full-bfloat16-none-optimizer-on-host-weights-on-host",
)


def neurons_of(size: str) -> Tensor:
    """Every ninth neuron of each layer but the first."""
    layers, width = SIZES[size]["num_hidden_layers"], SIZES[size]["intermediate_size"]
    index = torch.arange(0, width, 9)
    return torch.stack(
        [torch.arange(1, layers).repeat_interleave(len(index)), index.repeat(layers - 1)], dim=1
    )
