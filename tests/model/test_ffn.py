"""The slices that `ffn_layers` names are the neurons, in every supported architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GraniteMoeConfig, PreTrainedModel

from lape_ds.errors import UserError
from lape_ds.model.ffn import SUPPORTED_MODEL_TYPES, FFNLayer, WeightSlice, ffn_layers
from tests.tiny_models import HIDDEN_SIZE, MIXTURES, MODEL_TYPES, NUM_EXPERTS, NUM_LAYERS, tiny_model

UNGATED = {"opt", "bloom", "phi", "gpt_neox"}
DENSE = tuple(model_type for model_type in MODEL_TYPES if model_type not in MIXTURES)
LAYER, NEURON = 1, 5
EXPERT = 2


def _down_inputs(model: PreTrainedModel, layer: FFNLayer) -> Tensor:
    """What the layer's down projection sees: one column per neuron, `[tokens, neurons]`."""
    seen: list[Tensor] = []
    down = model.get_submodule(layer.slices[-1].parameter_name.removesuffix(".weight"))
    handle = down.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        model(torch.arange(3, 20)[None])
    handle.remove()
    return seen[0]


def _nudge(weight: WeightSlice, neuron: int) -> None:
    with torch.no_grad():
        weight.parameter.select(weight.axis, weight.offset + neuron).add_(0.5)


def _expert_output(experts: nn.Module, expert: int) -> Tensor:
    """What one expert makes of 5 random vectors, `[5, hidden]`, with all of them routed to it."""
    states = torch.randn(5, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return experts(states, torch.full((5, 1), expert), torch.ones(5, 1))


def _values_of_neurons(layer: FFNLayer) -> Tensor:
    """What every neuron hands to its down projection, `[experts, neurons of an expert, 5]`, seen through one column."""
    down = layer.slices[-1].parameter
    kept = down.detach().clone()
    values = torch.empty(NUM_EXPERTS, 23, 5)
    for expert, neuron in torch.cartesian_prod(torch.arange(NUM_EXPERTS), torch.arange(23)).tolist():
        with torch.no_grad():
            down.zero_()
            down[expert, 0, neuron] = 1.0
        values[expert, neuron] = _expert_output(layer.gate, expert)[:, 0]
    with torch.no_grad():
        down.copy_(kept)
    return values


def test_every_supported_type_is_tested() -> None:
    assert set(MODEL_TYPES) == set(SUPPORTED_MODEL_TYPES)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_layout(model_type: str) -> None:
    model = tiny_model(model_type)
    layers = ffn_layers(model)
    assert [layer.index for layer in layers] == list(range(NUM_LAYERS))
    parameters = dict(model.named_parameters())
    for layer in layers:
        # BLOOM's intermediate size is fixed at 4 × hidden; the others' is set in tests/tiny_models.py.
        assert layer.neurons_per_expert == (4 * HIDDEN_SIZE if model_type == "bloom" else 23)
        assert layer.num_experts == (NUM_EXPERTS if model_type in MIXTURES else 1)
        assert layer.num_neurons == layer.num_experts * layer.neurons_per_expert
        assert layer.is_mixture == (model_type in MIXTURES)
        expected = (
            ["up_proj", "down_proj"] if model_type in UNGATED else ["gate_proj", "up_proj", "down_proj"]
        )
        assert [weight.projection for weight in layer.slices] == expected
        assert all(parameters[weight.parameter_name] is weight.parameter for weight in layer.slices)


@pytest.mark.parametrize("model_type", DENSE)
def test_rows_are_the_neuron(model_type: str) -> None:
    """A nudge of row i of gate or up moves what the down projection sees in column i, and nowhere else."""
    for number in range(len(ffn_layers(tiny_model(model_type))[LAYER].slices) - 1):
        model = tiny_model(model_type)
        layer = ffn_layers(model)[LAYER]
        before = _down_inputs(model, layer)
        _nudge(layer.slices[number], NEURON)
        moved = (_down_inputs(model, layer) != before).any(0)
        assert moved.nonzero().flatten().tolist() == [NEURON]


@pytest.mark.parametrize("model_type", DENSE)
def test_column_is_the_neuron(model_type: str) -> None:
    """Column i of the down projection takes exactly column i of its input."""
    model = tiny_model(model_type)
    layer = ffn_layers(model)[LAYER]
    down_slice = layer.slices[-1]
    down = model.get_submodule(down_slice.parameter_name.removesuffix(".weight"))
    unit = torch.zeros(layer.num_neurons)
    unit[NEURON] = 1.0
    with torch.no_grad():
        column = down(unit) - down(torch.zeros_like(unit))
    torch.testing.assert_close(column, down_slice.parameter.select(down_slice.axis, NEURON).detach())


@pytest.mark.parametrize("model_type", MIXTURES)
@pytest.mark.parametrize("projection", [0, 1], ids=["gate", "up"])
def test_rows_are_the_neuron_of_an_expert(model_type: str, projection: int) -> None:
    layer = ffn_layers(tiny_model(model_type))[LAYER]
    weight = layer.slices[projection]
    before = _values_of_neurons(layer)
    with torch.no_grad():
        weight.parameter[EXPERT].select(weight.axis, weight.offset + NEURON).add_(0.5)
    moved = (_values_of_neurons(layer) != before).any(-1)
    assert moved.nonzero().tolist() == [[EXPERT, NEURON]]


@pytest.mark.parametrize("model_type", MIXTURES)
def test_column_is_the_neuron_of_an_expert(model_type: str) -> None:
    layer = ffn_layers(tiny_model(model_type))[LAYER]
    weight = layer.slices[-1]
    values = _values_of_neurons(layer)
    before = [_expert_output(layer.gate, expert) for expert in range(NUM_EXPERTS)]
    with torch.no_grad():
        weight.parameter[EXPERT].select(weight.axis, NEURON).add_(0.5)
    for expert in range(NUM_EXPERTS):
        expected = before[expert] + (0.5 * values[EXPERT, NEURON][:, None] if expert == EXPERT else 0.0)
        torch.testing.assert_close(_expert_output(layer.gate, expert), expected)


@pytest.mark.parametrize(
    ("model_type", "settings", "dense"),
    [
        ("qwen3_moe", {"mlp_only_layers": [1]}, "1"),
        ("qwen2_moe", {"decoder_sparse_step": 2}, "0, 2"),  # (index + 1) % 2 == 0 is a mixture
    ],
)
def test_dense_layers_among_mixtures_are_refused(
    model_type: str, settings: dict[str, Any], dense: str
) -> None:
    with pytest.raises(
        UserError, match=f"'{model_type}' with dense .* not supported .here layers {dense}, by"
    ):
        ffn_layers(tiny_model(model_type, **settings))


def test_fused_halves() -> None:
    """Phi-3 computes `gate, up = gate_up_proj(x).chunk(2)`: gate first (transformers, Phi3MLP)."""
    gate, up, _ = ffn_layers(tiny_model("phi3"))[0].slices
    assert gate.parameter is up.parameter
    assert (gate.offset, up.offset) == (0, 23)


@pytest.mark.parametrize("model_type", ["llama", "phi3", "opt", "mixtral"])
def test_partitioned_parameters(model_type: str) -> None:
    """ZeRO-3 leaves a placeholder of shape [0] and keeps the true one in `ds_shape`."""
    model = tiny_model(model_type)
    for parameter in model.parameters():
        parameter.ds_shape = parameter.shape  # type: ignore[attr-defined]
        parameter.data = torch.empty(0)
    layers = ffn_layers(model)
    assert [layer.neurons_per_expert for layer in layers] == [23] * NUM_LAYERS
    assert [layer.num_experts for layer in layers] == [4 if model_type == "mixtral" else 1] * NUM_LAYERS
    assert [weight.offset for weight in layers[0].slices] == (
        [0, 23, 0] if model_type in ("phi3", "mixtral") else [0] * len(layers[0].slices)
    )


@pytest.mark.parametrize(
    "config",
    [
        GraniteMoeConfig(
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        ),
        GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2),
    ],
    ids=lambda config: config.model_type,
)
def test_unknown_type_is_refused_by_name(config: GraniteMoeConfig | GPT2Config) -> None:
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=rf"'{config.model_type}'.*Supported: llama, mistral.*mixtral"):
        ffn_layers(model)


def test_activation_that_loses_the_sign_is_refused() -> None:
    with pytest.raises(UserError, match="hidden_act='sigmoid'"):
        ffn_layers(tiny_model("llama", hidden_act="sigmoid"))
