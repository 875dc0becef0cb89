"""What trains: a method is a branch of `prepare`, and there is one loop for all of them.

Between the loaded model and the DeepSpeed engine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lape_ds.model.ffn import ffn_layers
from lape_ds.recipe import OptimizerSection, TrainSection
from lape_ds.subnetwork.dense import DenseEntries
from lape_ds.subnetwork.lion import Lion
from lape_ds.subnetwork.masked import MaskedOptimizer

Trained = MaskedOptimizer | DenseEntries


def prepare(model: nn.Module, train: TrainSection, neurons: Tensor | None) -> Trained:
    """Freezes what does not train and makes the optimizer of what does.

    Args:
        model: As loaded, before `deepspeed.initialize`.
        train: The recipe's section.
        neurons: integer [n, 2] of (layer, index) for the methods that train neurons, None for the others.

    Raises:
        UserError: Neurons and model do not fit, or the architecture is not known.
    """
    cls, settings = _optimizer(train.optimizer)
    match train.method:
        case "subnetwork" | "random":
            assert neurons is not None
            return MaskedOptimizer(model, neurons, cls, **settings)
        case "full":
            return DenseEntries(model, [name for name, _ in model.named_parameters()], cls, **settings)
        case "ffn":
            names = {part.parameter_name for layer in ffn_layers(model) for part in layer.slices}
            return DenseEntries(model, sorted(names), cls, **settings)


def torch_optimizer(trained: Trained) -> torch.optim.Optimizer:
    """The optimizer to hand to DeepSpeed."""
    return trained if isinstance(trained, MaskedOptimizer) else trained.optimizer


def _optimizer(section: OptimizerSection) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    common = {"lr": section.learning_rate, "weight_decay": section.weight_decay}
    match section.name:
        case "adamw":
            return torch.optim.AdamW, common | {"betas": section.betas or (0.9, 0.999), "eps": section.eps}
        case "adam":
            return torch.optim.Adam, common | {"betas": section.betas or (0.9, 0.999), "eps": section.eps}
        case "sgd":
            return torch.optim.SGD, common | {"momentum": section.momentum}
        case "lion":
            return Lion, common | {"betas": section.betas or (0.9, 0.99)}
