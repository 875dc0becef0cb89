"""The recipe's `train:` section: what trains, on how much text, with which optimizer, and what holds it to the base.

Beside the other sections; `model.create.pretrain` is another one of the same kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from lape_ds.recipe.base import NAME, Section
from lape_ds.recipe.fields import ByLanguage, LanguageCodes, TokenBudget

NEURON_METHODS = ("subnetwork", "random", "topk")  # of train.method: those that train neurons


def _checkpointing_kind(value: object) -> object:
    """`true` and `false` are short for the usual kind and for none."""
    return {True: "non_reentrant", False: "none"}[value] if isinstance(value, bool) else value


class OptimizerSection(Section):
    """An elementwise optimizer and its settings."""

    name: Literal["adamw", "adam", "sgd", "lion"] = "adamw"
    learning_rate: PositiveFloat = 1e-4
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] | None = None  # None: 0.9, 0.999; of lion 0.9, 0.99
    eps: PositiveFloat = 1e-8
    momentum: float = Field(default=0.9, ge=0, lt=1)  # sgd only

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float] | None) -> tuple[float, float] | None:
        if betas is not None and not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"each must be at least 0 and less than 1, not {list(betas)}")
        return betas

    @model_validator(mode="after")
    def _no_idle_setting(self) -> OptimizerSection:
        idle = {"sgd": ("betas", "eps"), "lion": ("eps", "momentum")}.get(self.name, ("momentum",))
        for key in idle:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no use with name: {self.name}; remove it")
        return self


class ScheduleSection(Section):
    """Learning rate over optimizer steps."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    final_ratio: float = Field(default=0.0, ge=0, le=1)  # of the peak, at the last step (linear, cosine)

    @model_validator(mode="after")
    def _no_idle_setting(self) -> ScheduleSection:
        if self.name == "constant" and self.final_ratio != 0:
            raise ValueError(
                "final_ratio has no use with name: constant; remove it, or take linear or cosine"
            )
        return self


class ReplaySection(Section):
    """Text of other languages mixed into training against forgetting."""

    share: float = Field(default=0.0, ge=0, lt=1)  # of all blocks
    languages: LanguageCodes = []  # empty: all identified languages but those trained

    @model_validator(mode="after")
    def _no_idle_setting(self) -> ReplaySection:
        if self.languages and self.share == 0:
            raise ValueError("languages has no use with share: 0; give a share above 0, or remove it")
        return self


class AnchorSection(Section):
    """Forces that hold training to the base model, against forgetting."""

    # Pull of what trains to where it began (an adapter: to its first values), by learning rate x l2 of the way after each step.
    l2: float = Field(default=0.0, ge=0)
    kl: float = Field(
        default=0.0, ge=0
    )  # on KL(base || trained) of each replayed token; keeps a copy of the base


class LoRASection(Section):
    """The adapter of `method: lora` (PEFT's). Defaults as in the paper's baseline: r 32, alpha 64, dropout 0.1, FFN only."""

    r: PositiveInt | Literal["match"] = (
        32  # match: as many weights as the target's subnetwork, as nearly as r allows
    )
    alpha: PositiveInt | None = None  # None: 2 r
    dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: Literal["ffn", "all"] = "ffn"  # all: every linear but the head


class HeldOutSection(Section):
    """Held-out bits per byte during training."""

    # Also before the first step and after the last. None: never; then the newest checkpoint counts as the best.
    every_steps: PositiveInt | None = 500
    languages: LanguageCodes = []  # any, beside the trained ones; "best" is chosen on the trained ones
    tokens_per_language: PositiveInt = 50_000
    tokens_per_batch: PositiveInt = 8_192


class TrainSection(Section):
    """One training run."""

    # None: the method's name. With slashes: folders within folders.
    run_name: str | None = Field(default=None, pattern=f"^{NAME}(/{NAME})*$")
    method: Literal["subnetwork", "random", "topk", "full", "ffn", "lora", "ia3"] = "subnetwork"
    engine: Literal["compact", "masked"] = "compact"  # of the methods that train neurons
    neurons: Path | None = None  # None: <output_dir>/identify/neurons.safetensors
    random_seed: int = 0  # of `method: random`
    lora: LoRASection = LoRASection()  # of `method: lora`
    languages: LanguageCodes = []  # empty: the target
    # How often each of several trained languages comes: by relative weight, 1 where not given; or, instead, in proportion to
    # (tokens of its text)^(1/temperature). 1: as much as there is; 5, say: nearly alike.
    weights: ByLanguage[PositiveFloat] = {}
    temperature: PositiveFloat | None = None
    tokens: TokenBudget = "all"  # of the trained languages' text, per epoch
    epochs: PositiveFloat = 1.0
    max_steps: PositiveInt | None = None
    block_length: int = Field(default=512, ge=2)
    micro_batch_size: PositiveInt = 2
    gradient_accumulation_steps: PositiveInt = 1
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    gradient_clipping: float = Field(default=1.0, ge=0)  # 0: off
    gradient_checkpointing: Annotated[
        Literal["none", "non_reentrant", "reentrant"], BeforeValidator(_checkpointing_kind)
    ] = "none"
    torch_compile: bool = False  # every decoder layer by itself
    replay: ReplaySection = ReplaySection()
    anchor: AnchorSection = AnchorSection()
    heldout: HeldOutSection = HeldOutSection()
    checkpoint_every_steps: PositiveInt = 500
    keep_checkpoints: PositiveInt = 2  # the newest, and what each of them calls the best
    resume: Literal["auto", "never"] = "auto"
    # Also log how far each step moves the trained weights (L2 norm of the change, and relative to their norm); a second copy of
    # the fp32 masters is kept for it.
    log_update_norms: bool = False
    tensorboard: bool = False
    wandb: str | None = None  # project name

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSection:
        warmup = self.schedule.warmup_steps
        if self.max_steps is not None and warmup >= self.max_steps:
            raise ValueError(
                f"schedule.warmup_steps ({warmup}) must be less than max_steps ({self.max_steps})"
            )
        if self.temperature is not None and self.weights:
            raise ValueError(
                "temperature and weights both say how often each language comes: remove one of them"
            )
        both = [code for code in self.replay.languages if code in self.languages]
        if both:
            raise ValueError(f"replay.languages names {both[0]}, which languages trains already")
        if self.anchor.kl > 0 and self.replay.share == 0:
            raise ValueError(
                "anchor.kl is measured on replayed text, of which there is none: set replay.share above 0, or remove it"
            )
        return self
