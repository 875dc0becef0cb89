"""The cases that both engines are held to, shared by the worker that runs them and the test that judges them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from lape_ds.subnetwork.lion import Lion
from tests.tiny_models import MIXTURES, VOCAB_SIZE

Engine = Literal["masked", "compact"]
STEPS = 20
ACCUMULATION = 2
MAX_NORM = 0.03  # bites: the tiny models' norms are larger in every step
# Layer 0 with several neurons, layer 1 empty, layer 2 with a single one (the last: where the padding of an odd size is).
NEURONS = [(0, 0), (0, 3), (0, 4), (0, 22), (2, 22)]
# In a mixture of 4 experts of 23: layer 0 with neurons of all experts but the second, of the last one the last.
MIXTURE_NEURONS = [(0, 0), (0, 3), (0, 22), (0, 46 + 4), (0, 91), (2, 91)]

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"weight_decay": 0.1, "momentum": 0.9}),
    "lion": (Lion, {"weight_decay": 0.1}),
}


# What trains before and after the checkpoint: the format knows no engine.
CHECKPOINT_METHODS: tuple[tuple[str, Engine, Engine], ...] = (
    ("subnetwork", "masked", "masked"),
    ("subnetwork", "compact", "compact"),
    ("subnetwork", "masked", "compact"),
    ("subnetwork", "compact", "masked"),
    ("full", "masked", "masked"),
    ("lora", "masked", "masked"),
    ("ia3", "masked", "masked"),
)


@dataclass(frozen=True)
class Case:
    stage: int
    offload: Literal["none", "cpu"] = "none"
    dtype: Literal["float32", "bfloat16"] = "float32"
    optimizer: str = "adamw"
    model_type: str = "llama"
    sub_group_size: int | None = None
    engine: Engine = "masked"
    recomputing: Literal["none", "non_reentrant", "reentrant"] = "none"
    anchor: float = 0.0  # strength of the L2 anchor

    @property
    def neurons(self) -> list[tuple[int, int]]:
        return neurons_of(self.model_type)

    @property
    def name(self) -> str:
        parts = [self.engine, f"z{self.stage}", self.dtype, self.optimizer, self.model_type]
        parts += ["offload"] if self.offload == "cpu" else []
        parts += [self.recomputing] if self.recomputing != "none" else []
        parts += ["anchored"] if self.anchor else []
        return "-".join(parts + ([f"sub{self.sub_group_size}"] if self.sub_group_size else []))


def neurons_of(model_type: str) -> list[tuple[int, int]]:
    return MIXTURE_NEURONS if model_type in MIXTURES else NEURONS


def all_cases() -> list[Case]:
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    cases = [Case(stage, dtype=dtype) for stage in (0, 1, 2, 3) for dtype in dtypes]
    cases += [Case(stage, "cpu", dtype) for stage in (1, 2, 3) for dtype in dtypes]  # stage 0 has no offload
    cases += [Case(2, optimizer=name) for name in ("adam", "sgd", "lion")]
    cases += [Case(3, optimizer=name, dtype="bfloat16") for name in ("sgd", "lion")]
    cases += [Case(2, model_type="phi3"), Case(3, model_type="phi3")]
    cases += [Case(stage, model_type="mixtral") for stage in (0, 2, 3)]
    cases += [Case(3, model_type="qwen3_moe")]
    # 100 elements a sub-group: smaller than every FFN weight (16 x 23), so that each is a sub-group by itself.
    cases += [Case(3, sub_group_size=100), Case(3, "cpu", "bfloat16", sub_group_size=100)]
    # A tenth of the way back in each of the first ten steps.
    cases += [Case(0, anchor=100.0), Case(3, anchor=100.0, dtype="bfloat16", sub_group_size=100)]
    return cases + compact_cases()


def compact_cases() -> list[Case]:
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    kinds: tuple[Literal["non_reentrant", "reentrant"], ...] = ("non_reentrant", "reentrant")
    cases = [Case(stage, dtype=dtype) for stage in (0, 1, 2, 3) for dtype in dtypes]
    cases += [
        Case(1, "cpu"),
        Case(2, "cpu", "bfloat16"),
        Case(3, "cpu"),
        Case(3, "cpu", "bfloat16", sub_group_size=100),
    ]
    cases += [Case(2, optimizer="sgd"), Case(3, optimizer="lion", dtype="bfloat16")]
    cases += [Case(2, recomputing="non_reentrant"), Case(2, recomputing="reentrant")]
    cases += [Case(3, recomputing=kind, dtype=dtype) for kind in kinds for dtype in dtypes]
    cases += [Case(2, model_type="phi3"), Case(3, model_type="phi3", dtype="bfloat16")]
    cases += [Case(2, model_type="phi"), Case(3, model_type="phi", recomputing="non_reentrant")]
    cases += [Case(stage, model_type="mixtral") for stage in (0, 1, 2, 3)]
    cases += [Case(2, model_type="mixtral", recomputing="reentrant")]
    cases += [Case(3, model_type="mixtral", recomputing=kind) for kind in kinds]
    cases += [Case(3, model_type="qwen3_moe", recomputing="non_reentrant")]
    cases += [Case(2, anchor=100.0), Case(3, anchor=100.0, sub_group_size=100)]
    return [replace(case, engine="compact") for case in cases]


# Every stage, dtype, engine, optimizer, kind of block and switch once; the others of `all_cases` are among the long tests.
_SHORT = {
    "masked": "z0-float32-adamw-llama z0-bfloat16-adamw-llama z1-bfloat16-adamw-llama z2-float32-adamw-llama "
    "z2-float32-sgd-llama z2-float32-adam-llama z2-float32-adamw-phi3 z2-bfloat16-adamw-llama-offload "
    "z3-float32-adamw-llama z3-bfloat16-adamw-llama z3-bfloat16-lion-llama z3-float32-adamw-mixtral "
    "z3-bfloat16-adamw-llama-offload-sub100 z3-bfloat16-adamw-llama-anchored-sub100",
    "compact": "z0-bfloat16-adamw-llama z1-float32-adamw-llama z1-float32-adamw-llama-offload z2-bfloat16-adamw-llama "
    "z2-float32-sgd-llama z2-float32-adamw-phi z2-float32-adamw-llama-anchored z2-float32-adamw-mixtral-reentrant "
    "z3-float32-adamw-llama z3-float32-adamw-llama-offload z3-bfloat16-lion-llama z3-bfloat16-adamw-phi3 "
    "z3-bfloat16-adamw-llama-reentrant z3-float32-adamw-llama-non_reentrant z3-float32-adamw-qwen3_moe-non_reentrant",
}


def is_short(case: Case) -> bool:
    """Whether a case is among the tests that are always run."""
    return case.name.removeprefix(f"{case.engine}-") in _SHORT[case.engine].split()


def learning_rate(step: int) -> float:
    return 1e-3 if step < STEPS // 2 else 3e-4


def micro_batches(step: int, world_size: int, model_type: str = "llama") -> list[list[Tensor]]:
    """Token ids [1, 12] for every rank and accumulation step; the same numbers wherever they are asked for.

    [1, 3] for mixtures, so that now and then an expert gets no token, on one rank or on all.
    """
    generator = torch.Generator().manual_seed(1000 + step)
    ids = torch.randint(3, VOCAB_SIZE, (world_size, ACCUMULATION, 1, 12), generator=generator)
    return [list(rank) for rank in ids[..., : 3 if model_type in MIXTURES else 12]]
