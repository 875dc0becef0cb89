"""Switching neurons off: held against a forward in which a hook sets their activations to 0."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from lape_ds.model.experts import routes
from lape_ds.model.ffn import ffn_layers
from lape_ds.model.switching import switched_off
from tests.tiny_models import MIXTURES, MODEL_TYPES, NUM_EXPERTS, VOCAB_SIZE, tiny_model

DOWN = {"opt": "fc2", "phi": "fc2", "bloom": "mlp.dense_4h_to_h", "gpt_neox": "mlp.dense_4h_to_h"}
BLOCK = {"phi": "mlp.fc2"}


def some_neurons(num_neurons: int) -> Tensor:
    """First, last and some between of layers 0 and 2, none of layer 1; in a mixture of every expert."""
    generator = torch.Generator().manual_seed(3)
    picked = {
        0,
        num_neurons - 1,
        *torch.randperm(num_neurons, generator=generator)[: num_neurons // 3].tolist(),
    }
    return torch.tensor([[layer, index] for layer in (0, 2) for index in sorted(picked)], dtype=torch.int32)


@contextmanager
def activations_at_zero(model: PreTrainedModel, model_type: str, neurons: Tensor) -> Iterator[None]:
    """The definition: what goes into `down_proj` is 0 at the neurons. Layouts written out anew, without model/ffn.py."""
    root: Any = model
    layers = root.model.decoder.layers if model_type == "opt" else None
    layers = root.transformer.h if model_type == "bloom" else layers
    layers = root.gpt_neox.layers if model_type == "gpt_neox" else layers
    layers = root.model.layers if layers is None else layers
    handles = []
    for number, layer in enumerate(layers):
        off = neurons[neurons[:, 0] == number, 1].long()
        if model_type in MIXTURES:
            layer.mlp.experts.forward = MethodType(experts_forward(off), layer.mlp.experts)
            continue
        name = BLOCK.get(model_type, DOWN.get(model_type, "mlp.down_proj"))

        def zero(module: nn.Module, inputs: tuple[Tensor, ...], off: Tensor = off) -> tuple[Tensor, ...]:
            activations = inputs[0].clone()
            activations[..., off] = 0
            return activations, *inputs[1:]

        handles.append(layer.get_submodule(name).register_forward_pre_hook(zero))
    yield
    for handle in handles:
        handle.remove()
    for layer in layers:
        if model_type in MIXTURES:
            del layer.mlp.experts.forward


def experts_forward(off: Tensor) -> Any:
    def forward(self: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        result = torch.zeros_like(hidden)
        for expert, tokens, choice in routes(top_k_index, NUM_EXPERTS):
            gate, up = linear(hidden[tokens], self.gate_up_proj[expert]).chunk(2, dim=-1)
            activations = self.act_fn(gate) * up
            activations[:, [int(i) - expert * 23 for i in off if int(i) // 23 == expert]] = 0
            output = linear(activations, self.down_proj[expert]) * top_k_weights[tokens, choice, None]
            result.index_add_(0, tokens, output)
        return result

    return forward


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    tokens = torch.randint(3, VOCAB_SIZE, (2, 17), generator=torch.Generator().manual_seed(1))
    output: Any = model(input_ids=tokens)
    return output.logits


def bits(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.view(torch.int32).clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_off_is_an_activation_of_zero(model_type: str) -> None:
    model = tiny_model(model_type)
    neurons = some_neurons(ffn_layers(model)[0].num_neurons)
    before, weights = logits(model), bits(model)
    with activations_at_zero(model, model_type, neurons):
        expected = logits(model)
    with switched_off(model, neurons):
        found = logits(model)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, before, rtol=1e-2), "the neurons matter to this model"
    assert bits(model).keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in bits(model).items())
    assert torch.equal(logits(model), before)


def test_the_bias_stays() -> None:
    """All neurons off: an ungated block with a bias gives its bias, and nothing else."""
    model = tiny_model("opt")
    layer: Any = model.get_submodule("model.decoder.layers.1")
    seen: list[Tensor] = []
    layer.fc2.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with switched_off(model, torch.tensor([[1, i] for i in range(23)])):
        logits(model)
    assert torch.equal(seen[0], layer.fc2.bias.expand_as(seen[0]))
    assert bool(layer.fc2.bias.abs().max() > 0)


def zero_and_stop(model: PreTrainedModel, weight: Tensor) -> None:
    with switched_off(model, torch.tensor([[2, 5], [2, 22]])):
        assert not weight[:, [5, 22]].any()
        raise KeyboardInterrupt


def test_every_bit_comes_back_also_after_an_error() -> None:
    """Negative zeros, denormals and NaNs with a payload too, in half of a float's bytes."""
    model = tiny_model("llama", dtype=torch.bfloat16)
    weight = model.get_parameter("model.layers.2.mlp.down_proj.weight")
    patterns = torch.tensor([-0x8000, 0x0001, 0x7FC1, -0x0001], dtype=torch.int16)
    with torch.no_grad():
        weight[:4, 5] = patterns.view(torch.bfloat16)
    before = weight.detach().view(torch.int16).clone()
    with pytest.raises(KeyboardInterrupt):
        zero_and_stop(model, weight)
    assert torch.equal(weight.detach().view(torch.int16), before)


def test_no_neurons_are_no_change() -> None:
    model = tiny_model("llama")
    before = logits(model)
    with switched_off(model, torch.empty(0, 2, dtype=torch.int32)):
        assert torch.equal(logits(model), before)
