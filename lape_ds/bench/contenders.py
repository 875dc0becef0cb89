"""The methods, each ready to take a whole training step on a model of its own.

Between the shapes and the rounds. Loss, optimizer (torch's AdamW) and its settings are the same for all.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from lape_ds.bench.clone import clone_subnetwork
from lape_ds.bench.shapes import Batch
from lape_ds.bench.sparse import shira_subnetwork
from lape_ds.model.loss import LanguageModelLoss
from lape_ds.model.meters import SavedForBackward, count_flops, peak_bytes, storage_bytes
from lape_ds.recipe import TrainSection
from lape_ds.subnetwork.methods import prepare, torch_optimizer
from lape_ds.subnetwork.recomputing import recompute_layers

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
# These write to the weights of the model itself; compact only what its slices hold, before it multiplies.
WRITING = ("full", "ffn", "masked", "compact")
WEIGHT_DECAY = 0.01
# Those that `prepare` knows, by the recipe's section; LoRA without dropout, which would only slow it down.
_SECTIONS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "ffn": {"method": "ffn"},
    "lora_ffn": {"method": "lora", "lora": {"r": 32, "dropout": 0, "targets": "ffn"}},
    "lora_all": {"method": "lora", "lora": {"r": 16, "dropout": 0, "targets": "all"}},
    "masked": {"method": "subnetwork", "engine": "masked"},
    "compact": {"method": "subnetwork", "engine": "compact"},
}


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
    name: str,
    base: PreTrainedModel,
    neurons: Tensor,
    *,
    learning_rate: float,
    own_weights: bool = True,
    checkpointing: bool = False,
) -> Contender:
    """Makes one of `METHODS` on its own copy of a model.

    Args:
        name: Of the method.
        base: A plain causal language model, left as it is. Weights that the method does not write to stay shared with it.
        neurons: int64 [n, 2] of (layer, index), for the methods that train neurons.
        learning_rate: Of AdamW.
        own_weights: Methods of `WRITING` get copies of the weights. Else they share them and train at a learning rate
            of 0.
        checkpointing: Layers are recomputed in backward (the non-reentrant kind).
    """
    writes = name in WRITING
    model = _twin(base, shares=not (writes and own_weights))
    section = _SECTIONS.get(name)
    if section is not None:
        trained = prepare(model, TrainSection(**section), neurons)
        optimizer, num_trained = torch_optimizer(trained), trained.num_entries
    else:
        weights = _trained_weights(name, model, neurons)
        optimizer, num_trained = torch.optim.AdamW(weights), sum(weight.numel() for weight in weights)
    recompute_layers(model, "non_reentrant" if checkpointing else "none")
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if writes and not own_weights else learning_rate
        group["weight_decay"] = WEIGHT_DECAY
        # The fastest AdamW that torch has: six times the speed of its default, which would slow down full fine-tuning most.
        group["fused"] = model.device.type != "meta"
    return Contender(LanguageModelLoss(model), optimizer, num_trained)


def _twin(base: PreTrainedModel, *, shares: bool) -> PreTrainedModel:
    """The same model once more, of parameters of its own that share the base's memory or copy it."""
    params = {
        id(param): nn.Parameter(param.detach() if shares else param.detach().clone())
        for param in base.parameters()
    }
    return copy.deepcopy(base, memo=params)


def _trained_weights(name: str, model: PreTrainedModel, neurons: Tensor) -> list[nn.Parameter]:
    """Sets up a method that is not one of ours; returns what trains."""
    match name:
        case "clone":
            return clone_subnetwork(model, neurons)
        case "sparse":
            return shira_subnetwork(model, neurons)
    assert name == "floor", name
    model.requires_grad_(False)
    norm = model.get_submodule("model.layers.0.input_layernorm")
    assert isinstance(norm.weight, nn.Parameter)
    norm.weight = nn.Parameter(norm.weight.detach().clone())  # its own: the rest is shared with the base
    return [norm.weight]
