"""The methods, each ready to take a whole training step on a model of its own.

Between the shapes and the rounds. Loss, optimizer (torch's AdamW) and its settings are the same for all.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lape_ds.bench._loss import LanguageModelLoss
from lape_ds.bench.clone import clone_subnetwork
from lape_ds.bench.meters import SavedForBackward, count_flops, peak_bytes, storage_bytes
from lape_ds.bench.shapes import Batch
from lape_ds.bench.sparse import shira_subnetwork
from lape_ds.model.ffn import ffn_layers
from lape_ds.recipe import TrainSection
from lape_ds.subnetwork.methods import prepare, torch_optimizer

# What each one is, in the order of the tables.
METHODS: dict[str, str] = {
    "full": "every weight",
    "ffn": "every feed-forward weight",
    "lora_ffn": "PEFT's LoRA, r 32, on the feed-forward weights",
    "lora_all": "PEFT's LoRA, r 16, on all linear weights but the head",
    "sparse": "PEFT's SHiRA on the feed-forward weights, with about as many entries as the subnetwork",
    "clone": "the reference's algorithm, written by us: weights cloned in every forward",
    "masked": "our masked engine",
    "compact": "our compact engine",
    "floor": "forward and backward alone: one vector trains, the first layer's input norm",
}
WHOLE_WEIGHTS = ("full", "ffn", "masked")  # these write to weights of the model itself
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class StepBytes:
    """What one step costs beside time.

    Attributes:
        weights: Bytes of the model and what was added to it.
        gradients: Bytes of gradients between backward and the optimizer's step.
        optimizer_state: Bytes, from the first step on.
        saved_for_backward: Bytes that autograd keeps between forward and backward, beside weights and inputs.
        peak: Bytes at the worst moment of a step, weights and optimizer state included.
        executed_flops: Floating-point operations of the step as it ran, recomputation and unused gradients included.
    """

    weights: int
    gradients: int
    optimizer_state: int
    saved_for_backward: int
    peak: int
    executed_flops: int


@dataclass(frozen=True)
class Contender:
    """One method on one model.

    Attributes:
        loss: The loss module around the model.
        optimizer: Of what trains.
        num_trained: Weights that train.
    """

    loss: LanguageModelLoss
    optimizer: torch.optim.Optimizer
    num_trained: int

    def forward(self, batch: Batch) -> Tensor:
        """Mean nats per scored token, fp32."""
        total, _ = self.loss(batch.input_ids, batch.targets)
        return total / batch.targets.numel()

    def update(self) -> None:
        """What comes after backward."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def step(self, batch: Batch) -> Tensor:
        """One whole training step; returns its loss, detached."""
        loss = self.forward(batch)
        loss.backward()
        self.update()
        return loss.detach()

    def measure(self, batch: Batch) -> StepBytes:
        """Takes two steps (the first one makes the optimizer's state) and tells what they cost."""
        model = [*self.loss.parameters(), *self.loss.buffers()]
        inputs = [batch.input_ids, batch.targets]
        with count_flops() as flops:
            with SavedForBackward(excluding=[*model, *inputs]) as saved:
                loss = self.forward(batch)
            saved_bytes = saved.num_bytes()
            loss.backward()
            gradients = [param.grad for param in self.loss.parameters() if param.grad is not None]
            gradient_bytes = storage_bytes(gradients)
            del gradients
            self.update()
        del loss
        executed = flops()
        state = _tensors(self.optimizer.state_dict())
        step_peak = peak_bytes(lambda: self.step(batch), batch.input_ids.device, [*model, *inputs, *state])
        weights, optimizer_state = storage_bytes(model), storage_bytes(state)
        return StepBytes(
            weights=weights,
            gradients=gradient_bytes,
            optimizer_state=optimizer_state,
            saved_for_backward=saved_bytes,
            peak=weights + optimizer_state + step_peak,
            executed_flops=executed,
        )


def _tensors(state_dict: Mapping[str, Any]) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(state_dict) if isinstance(leaf, Tensor)]


def contender(
    name: str, base: nn.Module, neurons: Tensor, *, own_weights: bool, learning_rate: float
) -> Contender:
    """Makes one of `METHODS` on its own copy of a model.

    Args:
        name: Of the method.
        base: A plain causal language model, left as it is. Weights that the method does not move stay shared with it.
        neurons: int64 [n, 2] of (layer, index), for the methods that train neurons.
        own_weights: Methods of `WHOLE_WEIGHTS` get copies of what they move. Else they share it and train at a learning
            rate of 0.
        learning_rate: Of AdamW.
    """
    shares = name not in WHOLE_WEIGHTS or not own_weights
    model = _twin(base, shares)
    if name in ("full", "ffn"):
        made = _prepared(model, TrainSection(method=name), None)
    elif name in ("masked", "compact"):
        made = _prepared(model, TrainSection(method="subnetwork", engine=name), neurons)
    else:
        trained = _trained_weights(name, model, neurons)
        made = Contender(
            LanguageModelLoss(model), torch.optim.AdamW(trained), sum(p.numel() for p in trained)
        )
    at_rest = name in WHOLE_WEIGHTS and not own_weights
    for group in made.optimizer.param_groups:
        group["lr"] = 0.0 if at_rest else learning_rate
        group["weight_decay"] = WEIGHT_DECAY
        # The fastest AdamW that torch has: of six times the slower default, full fine-tuning would suffer most.
        group["fused"] = next(base.parameters()).device.type != "meta"
    return made


def _twin(base: nn.Module, shares: bool) -> nn.Module:
    """The same model once more, of parameters of its own that share the base's memory or copy it."""
    params = {
        id(param): nn.Parameter(param.detach() if shares else param.detach().clone())
        for param in base.parameters()
    }
    return copy.deepcopy(base, memo=params)


def _prepared(model: nn.Module, train: TrainSection, neurons: Tensor | None) -> Contender:
    trained = prepare(model, train, neurons)
    return Contender(LanguageModelLoss(model), torch_optimizer(trained), trained.num_entries)


def _trained_weights(name: str, model: nn.Module, neurons: Tensor) -> list[nn.Parameter]:
    """Sets up a method that is not one of `prepare`'s; returns what trains."""
    match name:
        case "clone":
            return clone_subnetwork(model, neurons)
        case "sparse":
            return shira_subnetwork(model, neurons)
        case "lora_ffn":
            parts = [part for layer in ffn_layers(model) for part in layer.slices]
            return _lora(model, [part.parameter_name.removesuffix(".weight") for part in parts], rank=32)
        case "lora_all":
            return _lora(model, _linear_modules(model), rank=16)
    assert name == "floor", name
    model.requires_grad_(False)
    norm = model.get_submodule("model.layers.0.input_layernorm")
    assert isinstance(norm.weight, nn.Parameter)
    norm.weight = nn.Parameter(norm.weight.detach().clone())  # its own: the rest is shared with the base
    return [norm.weight]


def _lora(model: nn.Module, modules: list[str], *, rank: int) -> list[nn.Parameter]:
    """Without dropout, which would only slow it down."""
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=modules)
    peft.inject_adapter_in_model(config, model)
    return [param for param in model.parameters() if param.requires_grad]


def _linear_modules(model: nn.Module) -> list[str]:
    """All but the head, as PEFT's `all-linear` has it."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
    ]
