"""The cases of the chunked loss under ZeRO, shared by the worker that runs them and the test that judges them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.tiny_models import VOCAB_SIZE, tiny_model

STEPS = 3
LEARNING_RATE = 0.1


@dataclass(frozen=True)
class Case:
    """One layout of one model; `trained` tells which weights train."""

    stage: int
    model_type: str
    tied: bool
    trained: Literal["all", "head", "embeddings"]

    @property
    def name(self) -> str:
        return f"z{self.stage}-{self.model_type}-{'tied' if self.tied else 'untied'}-{self.trained}"

    def model(self) -> PreTrainedModel:
        return tiny_model(self.model_type, tie_word_embeddings=self.tied)


def all_cases() -> list[Case]:
    kinds: list[tuple[str, bool, Literal["all", "head", "embeddings"]]] = [
        ("llama", True, "all"),
        ("llama", False, "all"),
        ("llama", False, "embeddings"),  # gradients through a frozen head
        ("phi", False, "head"),  # with a bias; nothing before the head trains
    ]
    return [Case(stage, *kind) for stage in (0, 1, 2, 3) for kind in kinds]


def trained_names(case: Case, model: nn.Module) -> list[str]:
    part = {"all": "", "head": "lm_head", "embeddings": "embed"}[case.trained]
    return [name for name, _ in model.named_parameters() if part in name]


def batches(step: int) -> tuple[Tensor, Tensor]:
    """Ids and targets [2, 9] of all ranks; in step 1 the second block has nothing to score."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(3, VOCAB_SIZE, (2, 9), generator=generator)
    targets = ids.roll(-1, 1)
    targets[:, -1] = -100
    targets[0, :3] = -100
    if step == 1:
        targets[1] = -100
    return ids, targets


def num_scored(step: int) -> int:
    return int((batches(step)[1] != -100).sum())
