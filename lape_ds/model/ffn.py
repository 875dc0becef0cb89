"""Where the neurons are: the feed-forward layout of every supported architecture.

Between the loaded model and everything that deals in neurons (counting, masks, packs). The only module that
knows architectures: all others see `FFNLayer` and `WeightSlice`.

A neuron is (layer, index): row `index` of `gate_proj`, row `index` of `up_proj`, column `index` of
`down_proj`. In an ungated block (OPT, BLOOM, Phi-2, GPT-NeoX) the first matrix is `up_proj` and its own
output is what gates. Biases belong to no neuron here: the method trains weights only (arXiv 2510.13580).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from lape_ds.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Projection = Literal["gate_proj", "up_proj", "down_proj"]

# Activations whose value is positive exactly where their input is: max(x, 0), or x times something positive.
# Counting relies on it (neurons/counting.py looks at the pre-activation only).
_SIGN_PRESERVING = frozenset(
    "silu swish gelu gelu_new gelu_fast gelu_python gelu_pytorch_tanh gelu_accurate quick_gelu relu relu2 "
    "leaky_relu".split()
)


@dataclass(frozen=True)
class WeightSlice:
    """One projection of one layer inside a parameter of the model.

    Neuron `i` is row (`axis` 0) or column (`axis` 1) `offset + i` of the weight.

    Attributes:
        parameter_name: Its name in `model.named_parameters()`.
        parameter: The weight, `[rows, columns]`; under `zero.Init` a placeholder of shape `[0]`.
        projection: Which of the neuron's three vectors lies here.
        axis: The neurons' axis.
        offset: Row or column of neuron 0 (not 0 only for the up half of a fused `gate_up_proj`).
    """

    parameter_name: str
    parameter: nn.Parameter
    projection: Projection
    axis: Literal[0, 1]
    offset: int


@dataclass(frozen=True)
class FFNLayer:
    """The feed-forward block of one decoder layer.

    Attributes:
        index: Layer number, from 0.
        num_neurons: `intermediate_size`.
        gate: The linear module whose output decides whether a neuron is active.
        gate_output_slice: The part of its last output axis that holds the neurons, `num_neurons` long.
        slices: The weights of the neurons: gate, up, down; up, down where the block is ungated.
        block_name: Of the module that holds them, in `model.get_submodule`.
        activation: Its activation; None where the block is ungated.
        activation_name: As the model's config calls it; "" where the block is ungated.
    """

    index: int
    num_neurons: int
    gate: nn.Module
    gate_output_slice: slice
    slices: tuple[WeightSlice, ...]
    block_name: str
    activation: nn.Module | None
    activation_name: str

    @property
    def is_gated(self) -> bool:
        """Whether the block is `down(act(gate(x)) * up(x))`, and not `down(act(up(x)))`."""
        return self.activation is not None


@dataclass(frozen=True)
class _Layout:
    """Names inside one architecture; `gate == up` says that both lie in one fused matrix, gate first."""

    layers: str
    block: str
    gate: str | None
    up: str
    down: str
    activation_key: str | None  # of the config; None: fixed in the architecture's code
    activation: str | None = None  # the block's attribute; of gated blocks only


def _gated(activation_key: str = "hidden_act") -> _Layout:
    return _Layout("model.layers", "mlp", "gate_proj", "up_proj", "down_proj", activation_key, "act_fn")


_LAYOUTS: dict[str, _Layout] = {
    "llama": _gated(),
    "mistral": _gated(),
    "qwen2": _gated(),
    "qwen3": _gated(),
    "gemma": _gated(),
    "gemma2": _gated("hidden_activation"),
    "gemma3_text": _gated("hidden_activation"),
    "cohere": _gated(),
    "cohere2": _gated(),
    "olmo": _gated(),
    "olmo2": _gated(),
    "olmo3": _gated(),
    "granite": _gated(),
    "smollm3": _gated(),
    "phi3": _Layout(
        "model.layers", "mlp", "gate_up_proj", "gate_up_proj", "down_proj", "hidden_act", "activation_fn"
    ),
    "opt": _Layout("model.decoder.layers", "", None, "fc1", "fc2", "activation_function"),
    "bloom": _Layout("transformer.h", "mlp", None, "dense_h_to_4h", "dense_4h_to_h", None),
    "phi": _Layout("model.layers", "mlp", None, "fc1", "fc2", "hidden_act"),
    "gpt_neox": _Layout("gpt_neox.layers", "mlp", None, "dense_h_to_4h", "dense_4h_to_h", "hidden_act"),
}

SUPPORTED_MODEL_TYPES: tuple[str, ...] = tuple(_LAYOUTS)


def ffn_layers(model: nn.Module) -> list[FFNLayer]:
    """Lists the feed-forward blocks of a causal language model, first layer first.

    Works on a model whose parameters are partitioned (`deepspeed.zero.Init`): sizes come from `ds_shape`
    there.

    Args:
        model: A plain `AutoModelForCausalLM`, not wrapped.

    Raises:
        UserError: The architecture is not supported, or its activation does not keep the sign of its input.
    """
    layout = _layout_of(model)
    parameters = dict(model.named_parameters())
    num_layers = len(decoder_layers(model))
    return [_ffn_layer(model, parameters, layout, index) for index in range(num_layers)]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of a causal language model, first one first.

    Raises:
        UserError: The architecture is not supported.
    """
    return list(model.get_submodule(_layout_of(model).layers).children())


@dataclass(frozen=True)
class LogitHead:
    """How a causal language model makes logits of its base model's hidden states.

    `logits = capped(linear(hidden) * scale)` with `capped(x) = softcap * tanh(x / softcap)`, or x where there is no cap.

    Attributes:
        linear: The output projection, `[vocabulary, hidden]`, with a bias in some.
        scale: 1 in most.
        softcap: None in most.
    """

    linear: nn.Linear
    scale: float
    softcap: float | None


# What the config says of logits between the projection and the loss. Types not named here have nothing there; that this
# holds for every supported type is tested against the models' own logits.
_LOGITS_TIMES = {"cohere": "logit_scale", "cohere2": "logit_scale"}
_LOGITS_OVER = {"granite": "logits_scaling"}
_LOGITS_CAPPED = {"gemma2": "final_logit_softcapping", "gemma3_text": "final_logit_softcapping"}


def logit_head(model: nn.Module) -> LogitHead:
    """What stands between the hidden states of `model.base_model` and the logits of `model`.

    Args:
        model: A plain `AutoModelForCausalLM`, not wrapped.

    Raises:
        UserError: The architecture is not supported, or something has replaced its output projection.
    """
    config: Any = model.config
    kind = config.model_type
    if kind not in _LAYOUTS:
        raise UserError(
            f"model type {kind!r} ({type(model).__name__}) is not supported: how it makes its logits is not known. "
            f"Supported: {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    linear = cast("PreTrainedModel", model).get_output_embeddings()
    if type(linear) is not nn.Linear:
        raise UserError(
            f"the output projection of this {kind} model is a {type(linear).__name__}, not a plain linear one: adapters and "
            "quantisation of it are not supported; leave it as the checkpoint has it"
        )
    scale = getattr(config, _LOGITS_TIMES[kind]) if kind in _LOGITS_TIMES else 1.0
    if kind in _LOGITS_OVER:
        scale = 1.0 / getattr(config, _LOGITS_OVER[kind])
    return LogitHead(linear, scale, getattr(config, _LOGITS_CAPPED[kind]) if kind in _LOGITS_CAPPED else None)


def _layout_of(model: nn.Module) -> _Layout:
    config: Any = model.config
    model_type = config.model_type
    if model_type not in _LAYOUTS:
        raise UserError(
            f"model type {model_type!r} ({type(model).__name__}) is not supported: its feed-forward layout "
            "is not known. "
            f"Supported: {', '.join(SUPPORTED_MODEL_TYPES)} (dense models only, no mixture of experts)"
        )
    layout = _LAYOUTS[model_type]
    if layout.activation_key is not None:
        activation = getattr(config, layout.activation_key)
        if activation not in _SIGN_PRESERVING:
            raise UserError(
                f"{layout.activation_key}={activation!r} in the model's config.json: neurons are counted as "
                "active where the "
                "gate is positive, which needs an activation that keeps the sign: "
                f"{', '.join(sorted(_SIGN_PRESERVING))}"
            )
    return layout


def _ffn_layer(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], layout: _Layout, index: int
) -> FFNLayer:
    block = ".".join(part for part in (layout.layers, str(index), layout.block) if part)

    def weight_slice(
        module: str, projection: Projection, axis: Literal[0, 1], offset: int = 0
    ) -> WeightSlice:
        name = f"{block}.{module}.weight"
        return WeightSlice(name, parameters[name], projection, axis, offset)

    down = weight_slice(layout.down, "down_proj", 1)
    num_neurons = full_shape(down.parameter)[1]
    if layout.gate is None:
        slices = (weight_slice(layout.up, "up_proj", 0), down)
    else:
        offset = num_neurons if layout.gate == layout.up else 0
        slices = (
            weight_slice(layout.gate, "gate_proj", 0),
            weight_slice(layout.up, "up_proj", 0, offset),
            down,
        )
    activation, activation_name = None, ""
    if layout.activation is not None and layout.activation_key is not None:
        activation = model.get_submodule(f"{block}.{layout.activation}")
        activation_name = getattr(model.config, layout.activation_key)
    return FFNLayer(
        index=index,
        num_neurons=num_neurons,
        gate=model.get_submodule(f"{block}.{layout.gate or layout.up}"),
        gate_output_slice=slice(0, num_neurons),
        slices=slices,
        block_name=block,
        activation=activation,
        activation_name=activation_name,
    )


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of the whole parameter, also where ZeRO-3 holds only this rank's part of it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
