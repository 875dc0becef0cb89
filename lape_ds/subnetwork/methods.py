"""What trains: a method is a branch of `prepare`, and there is one loop for all of them.

Between the loaded model and the DeepSpeed engine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lape_ds.model.ffn import ffn_layers
from lape_ds.recipe import OptimizerSection, TrainSection
from lape_ds.subnetwork.adapters import add_adapter, lora_weights_per_r
from lape_ds.subnetwork.compact import insert_slices
from lape_ds.subnetwork.entries import entry_masks
from lape_ds.subnetwork.lion import Lion
from lape_ds.subnetwork.masked import MaskedOptimizer
from lape_ds.subnetwork.parameters import ParameterEntries, TrainedParameter

Trained = MaskedOptimizer | ParameterEntries


def prepare(model: PreTrainedModel, train: TrainSection, neurons: Tensor | None) -> Trained:
    """Freezes what does not train, changes the model in place where the method needs it, and makes the optimizer.

    Args:
        model: As loaded, before `deepspeed.initialize`.
        train: The recipe's section; `lora.r` is a number (`with_matched_lora`).
        neurons: integer [n, 2] of (layer, index) for the methods that train neurons, None for the others.

    Raises:
        UserError: Neurons and model do not fit, or the architecture is not known.
    """
    cls, settings = _optimizer(train.optimizer)
    match train.method:
        case "subnetwork" | "random" | "topk":
            assert neurons is not None
            if train.engine == "masked":
                return MaskedOptimizer(model, neurons, cls, **settings)
            trained = insert_slices(model, neurons)
        case "full":
            trained = _whole_weights(model, {name for name, _ in model.named_parameters()})
        case "ffn":
            trained = _whole_weights(
                model, {part.parameter_name for layer in ffn_layers(model) for part in layer.slices}
            )
        case "lora" | "ia3":
            add_adapter(model, train)
            trained = [
                TrainedParameter(param, name)
                for name, param in model.named_parameters()
                if param.requires_grad
            ]
    added = train.method not in ("full", "ffn")
    return ParameterEntries(trained, cls, added=added, **settings)


def torch_optimizer(trained: Trained) -> torch.optim.Optimizer:
    """The optimizer to hand to DeepSpeed."""
    return trained if isinstance(trained, MaskedOptimizer) else trained.optimizer


def with_matched_lora(train: TrainSection, skeleton: nn.Module, neurons: Tensor) -> TrainSection:
    """The section with `lora.r: match` replaced by the r that trains about as many weights as the subnetwork does.

    Args:
        train: The recipe's section, with `method` lora and that r.
        skeleton: The model, or its shapes on the meta device.
        neurons: Of the subnetwork to match.
    """
    wanted = sum(mask.num_entries for mask in entry_masks(skeleton, neurons).values())
    r = max(1, round(wanted / lora_weights_per_r(skeleton, train.lora)))
    return train.model_copy(update={"lora": train.lora.model_copy(update={"r": r})})


def _whole_weights(model: nn.Module, names: set[str]) -> list[TrainedParameter]:
    for name, param in model.named_parameters():
        param.requires_grad_(name in names)
    return [TrainedParameter(param, name) for name, param in model.named_parameters() if name in names]


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
