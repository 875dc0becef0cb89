"""The recipe's `sweep:` section: which methods are compared, at which learning rates, with which seeds.

Beside the other sections; `sweep_runs.py` makes one training recipe of each combination.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from lape_ds.recipe.base import NAME, Section

# Where none are given: a decade around the rate that the paper gives each method (arXiv 2510.13580: 1e-4 for the subnetwork and
# LoRA, 1e-5 for full and FFN-only). It names none for (IA)³, whose few scales take larger steps (its own paper, arXiv 2205.05638:
# 3e-3).
DEFAULT_RATES: dict[str, tuple[float, ...]] = {
    "subnetwork": (3e-5, 1e-4, 3e-4),
    "random": (3e-5, 1e-4, 3e-4),
    "topk": (3e-5, 1e-4, 3e-4),
    "lora": (3e-5, 1e-4, 3e-4),
    "ia3": (1e-3, 3e-3, 1e-2),
    "ffn": (3e-6, 1e-5, 3e-5),
    "full": (3e-6, 1e-5, 3e-5),
}

_SET_BY_SWEEP = {
    "train.method": "method",
    "train.optimizer.learning_rate": "learning_rates",
    "train.random_seed": "sweep.seeds",
    "train.run_name": "name",
}
# Points of one picture must be of the same text, read in the same way and as much of it.
_SAME_FOR_ALL = (
    *(
        "train.languages",
        "train.weights",
        "train.temperature",
        "train.heldout",
        "train.block_length",
        "train.tokens",
        "train.epochs",
    ),
    *("train.max_steps", "train.micro_batch_size", "train.gradient_accumulation_steps"),
)


def _keys_are_free(settings: dict[str, Any]) -> dict[str, Any]:
    for key in settings:
        if not key.startswith(("train.", "deepspeed.")):
            raise ValueError(f"{key} cannot be set here; keys of train. and deepspeed. can")
        for taken, instead in _SET_BY_SWEEP.items():
            if _one_holds_the_other(key, taken):
                raise ValueError(
                    f"{key}: {taken} is given by {instead}; set single keys below {key}, or remove it"
                )
    return settings


def _one_holds_the_other(first: str, second: str) -> bool:
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def rate_label(rate: float) -> str:
    """A learning rate as folders and tables name it, e.g. `0.0003`, `1e-05`."""
    return f"{rate:g}"


def _distinct_rates(rates: list[float]) -> list[float]:
    labels = [rate_label(rate) for rate in rates]
    if len(set(labels)) < len(labels):
        raise ValueError(f"a rate is given twice: {', '.join(labels)}")
    return rates


def _distinct_seeds(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a seed is given twice: {seeds}")
    return seeds


Settings = Annotated[dict[str, Any], AfterValidator(_keys_are_free)]  # dotted key -> value
Seeds = Annotated[list[int], AfterValidator(_distinct_seeds)]


class SweepVariant(Section):
    """A method with settings of its own: one line in the picture."""

    method: str  # as train.method
    name: str = Field(pattern=f"^{NAME}$")  # the method's if not given
    learning_rates: Annotated[list[PositiveFloat], AfterValidator(_distinct_rates)] = Field(min_length=1)
    set: Settings = {}  # e.g. {train.replay.share: 0.25}
    seeds: Seeds | None = Field(default=None, min_length=1)  # None: the sweep's; e.g. [0, 1, 2] of random

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_method(cls, data: Any) -> Any:
        method = data.get("method") if isinstance(data, Mapping) else None
        if not isinstance(method, str):
            return data
        if method not in DEFAULT_RATES:
            raise ValueError(f"method must be one of {', '.join(DEFAULT_RATES)}, not {method!r}")
        return {"name": method, "learning_rates": list(DEFAULT_RATES[method]), **data}

    @model_validator(mode="after")
    def _measures_the_same(self) -> SweepVariant:
        for key in self.set:
            if any(_one_holds_the_other(key, same) for same in _SAME_FOR_ALL):
                raise ValueError(f"set: {key} must be the same for all variants; set it in sweep.set")
        return self


class SweepSection(Section):
    """Every variant is trained at every one of its learning rates with every seed."""

    variants: list[SweepVariant] = Field(
        default=[SweepVariant.model_validate({"method": method}) for method in DEFAULT_RATES], min_length=1
    )
    # Of a run: the order of the text, the neurons of `random`, the initial values of LoRA.
    seeds: Seeds = Field(default=[0, 1], min_length=1)
    set: Settings = {}  # of every run, before the variant's own
    workers: PositiveInt = 1  # runs side by side
    num_ranks: PositiveInt | None = None  # of each worker; None: launch.num_ranks
    # Of finished runs; without them no run can be exported. tuned: of each variant at the rate that gains most, as
    # far as its runs are finished.
    keep_checkpoints: bool | Literal["tuned"] = False

    @model_validator(mode="after")
    def _names_are_distinct(self) -> SweepSection:
        names = [variant.name for variant in self.variants]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"variants: two are named {min(twice)}; give one another name")
        return self

    def seeds_of(self, variant: SweepVariant) -> list[int]:
        """With which seeds a variant is trained."""
        return self.seeds if variant.seeds is None else variant.seeds
