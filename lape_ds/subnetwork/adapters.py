"""LoRA and (IA)³, both PEFT's: what the method is compared with.

Beside the engines. Adapters are put into the model in place; export merges them into its weights.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lape_ds.errors import UserError
from lape_ds.model.ffn import ffn_layers, full_shape, is_mixture
from lape_ds.recipe import LoRASection, TrainSection

ADAPTER_METHODS = ("lora", "ia3")


def add_adapter(model: PreTrainedModel, train: TrainSection) -> PeftModel:
    """Freezes the model and puts the recipe's adapter into it, in place.

    LoRA's random half is drawn from torch's global generator: seed it alike on every rank.

    Args:
        model: As loaded.
        train: With `method` lora or ia3, and `lora.r` a number.

    Returns:
        PEFT's wrapper, needed only to merge the adapter.

    Raises:
        UserError: The model is a mixture of experts.
    """
    check_dense(model, train.method)
    config: Any
    if train.method == "lora":
        assert isinstance(train.lora.r, int)
        config = LoraConfig(
            r=train.lora.r,
            lora_alpha=train.lora.alpha or 2 * train.lora.r,
            lora_dropout=train.lora.dropout,
            target_modules=_lora_targets(model, train.lora),
            task_type="CAUSAL_LM",
        )
    else:
        down, attention = _ia3_targets(model)
        config = IA3Config(
            task_type="CAUSAL_LM", target_modules=[*down, *attention], feedforward_modules=down
        )
    # In the model's own dtype: DeepSpeed keeps fp32 masters of whatever trains.
    return get_peft_model(model, config, autocast_adapter_dtype=False)  # type: ignore[return-value]


def adapted_weights(model: PreTrainedModel, train: TrainSection) -> set[str]:
    """Names of the weights into which export merges the recipe's adapter."""
    if train.method == "lora":
        return {f"{name}.weight" for name in _lora_targets(model, train.lora)}
    down, attention = _ia3_targets(model)
    return {f"{name}.weight" for name in (*down, *attention)} | {f"{name}.bias" for name in attention}


def lora_weights_per_r(model: nn.Module, lora: LoRASection) -> int:
    """Weights that LoRA adds for each unit of `r`: in + out features of every target.

    Raises:
        UserError: The model is a mixture of experts.
    """
    check_dense(model, "lora")
    names = _lora_targets(model, lora)
    return sum(
        sum(full_shape(cast("nn.Parameter", module.weight)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name in names
    )


def check_dense(model: nn.Module, method: str) -> None:
    """Refuses mixtures: experts are no linear modules, so PEFT would adapt the attention alone and say nothing.

    Raises:
        UserError: The model is a mixture of experts.
    """
    if is_mixture(model):
        config: Any = model.config
        raise UserError(
            f"train.method={method} is not supported for mixtures of experts ({config.model_type}): the adapter would leave "
            "the experts out; use subnetwork, random, topk, ffn or full"
        )


def _lora_targets(model: nn.Module, lora: LoRASection) -> list[str]:
    """Full names of the adapted linears; never the head."""
    if lora.targets == "ffn":
        names = {
            part.parameter_name.removesuffix(".weight")
            for layer in ffn_layers(model)
            for part in layer.slices
        }
        return sorted(names)
    head = model.get_output_embeddings()  # type: ignore[operator]
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
    ]


# Linears that make keys and values, fused with queries in some architectures.
_KEYS_VALUES = ("k_proj", "v_proj", "qkv_proj", "query_key_value")


def _ia3_targets(model: PreTrainedModel) -> tuple[list[str], list[str]]:
    """Full names of the linears that (IA)³ scales: `down_proj` (its input), keys and values (their outputs).

    Source: arXiv 2205.05638; PEFT's own table lacks half of the architectures that we know.
    """
    down = [
        part.parameter_name.removesuffix(".weight")
        for layer in ffn_layers(model)
        for part in layer.slices
        if part.projection == "down_proj"
    ]
    attention = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in _KEYS_VALUES
    ]
    return down, attention


@torch.no_grad()
def merge_adapter(adapted: PeftModel) -> PreTrainedModel:
    """The model with the adapter in its weights, as an ordinary one."""
    return adapted.merge_and_unload()  # type: ignore[operator, no-any-return]
