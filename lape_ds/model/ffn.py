"""Where the neurons are: the feed-forward layout of every supported architecture.

Between the loaded model and everything that deals in neurons (counting, masks, packs). The only module that
knows architectures: all others see `FFNLayer` and `WeightSlice`.

A neuron is (layer, index): row `index` of `gate_proj`, row `index` of `up_proj`, column `index` of
`down_proj`. In an ungated block (OPT, BLOOM, Phi-2, GPT-NeoX) the first matrix is `up_proj` and its own
output is what gates. Biases belong to no neuron here: the method trains weights only (arXiv 2510.13580).

In a mixture of experts every expert has neurons of its own: index = expert × intermediate size + i. Routers stay
frozen. So does the shared expert of Qwen2-MoE, which belongs to no neuron: it sees every token and has another size
than the routed ones, so its neurons could neither be counted nor be chosen by the same measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

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

    Neuron `i` is row (`axis` 0) or column (`axis` 1) `offset + i` of the weight; in a mixture, neuron `i` of an expert
    is that of the expert's matrix.

    Attributes:
        parameter_name: Its name in `model.named_parameters()`.
        parameter: The weight, `[rows, columns]`, in a mixture `[experts, rows, columns]`; under `zero.Init` a
            placeholder of shape `[0]`.
        projection: Which of the neuron's three vectors lies here.
        axis: The neurons' axis, of the last two.
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
        num_neurons: `intermediate_size`; of all experts together in a mixture.
        num_experts: 1 in a dense block.
        gate: The linear module whose output decides whether a neuron is active; in a mixture the module of all
            experts (model/experts.py runs it).
        gate_output_slice: The part of the gate's last output axis that holds the neurons (of one expert).
        slices: The weights of the neurons: gate, up, down; up, down where the block is ungated.
        block_name: Of the module that holds them, in `model.get_submodule`.
        activation: Its activation, a module as a rule; None where the block is ungated.
        activation_name: As the model's config calls it; "" where the block is ungated.
    """

    index: int
    num_neurons: int
    num_experts: int
    gate: nn.Module
    gate_output_slice: slice
    slices: tuple[WeightSlice, ...]
    block_name: str
    activation: Callable[[Tensor], Tensor] | None
    activation_name: str

    @property
    def is_gated(self) -> bool:
        """Whether the block is `down(act(gate(x)) * up(x))`, and not `down(act(up(x)))`."""
        return self.activation is not None

    @property
    def is_mixture(self) -> bool:
        """Whether the weights are stacks of experts, be it of one."""
        return len(full_shape(self.slices[0].parameter)) == 3

    @property
    def neurons_per_expert(self) -> int:
        """Neurons of one expert; of the whole block if it is dense."""
        return self.num_neurons // self.num_experts


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
    is_mixture: bool = False


def _gated(activation_key: str = "hidden_act") -> _Layout:
    return _Layout("model.layers", "mlp", "gate_proj", "up_proj", "down_proj", activation_key, "act_fn")


# Fused parameters [experts, …] of one module, not modules with a weight (transformers 5).
_MIXTURE = _Layout(
    layers="model.layers",
    block="mlp.experts",
    gate="gate_up_proj",
    up="gate_up_proj",
    down="down_proj",
    activation_key="hidden_act",
    activation="act_fn",
    is_mixture=True,
)

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
    "mixtral": _MIXTURE,
    "qwen2_moe": _MIXTURE,
    "qwen3_moe": _MIXTURE,
    "olmoe": _MIXTURE,
}

SUPPORTED_MODEL_TYPES: tuple[str, ...] = tuple(_LAYOUTS)


# Of these transformers 5.23 makes no mask by positions: BLOOM takes none, and OPT's mask is not told them.
_ONE_SEQUENCE = ("bloom", "opt")


def parts_documents(model: nn.Module) -> bool:
    """Whether documents in one row are kept apart where their positions say so (`position_ids` that begin at 0 anew)."""
    config: Any = model.config
    return config.model_type not in _ONE_SEQUENCE


def ffn_layers(model: nn.Module) -> list[FFNLayer]:
    """Lists the feed-forward blocks of a causal language model, first layer first.

    Works on a model whose parameters are partitioned (`deepspeed.zero.Init`): sizes come from `ds_shape`
    there.

    Args:
        model: A plain `AutoModelForCausalLM`, not wrapped.

    Raises:
        UserError: The architecture is not supported, its activation does not keep the sign of its input, or some
            layers of a mixture are dense.
    """
    layout = _layout_of(model)
    parameters = dict(model.named_parameters())
    num_layers = len(decoder_layers(model))
    if layout.is_mixture:
        _check_no_dense_layer(model, parameters, layout, num_layers)
    return [_ffn_layer(model, parameters, layout, index) for index in range(num_layers)]


def is_mixture(model: nn.Module) -> bool:
    """Whether a causal language model is a mixture of experts of a supported type."""
    config: Any = model.config
    return config.model_type in _LAYOUTS and _LAYOUTS[config.model_type].is_mixture


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
            f"is not known. Supported: {', '.join(SUPPORTED_MODEL_TYPES)}"
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


def _check_no_dense_layer(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], layout: _Layout, num_layers: int
) -> None:
    """A dense layer has another number of neurons, which neither counts [layers, neurons] nor a neuron set hold."""
    names = [f"{layout.layers}.{index}.{layout.block}.{layout.down}" for index in range(num_layers)]
    dense = [str(index) for index, name in enumerate(names) if name not in parameters]
    if dense:
        config: Any = model.config
        raise UserError(
            f"model type {config.model_type!r} with dense feed-forward layers among its mixtures of experts is not "
            f"supported (here layers {', '.join(dense)}, by mlp_only_layers and decoder_sparse_step in the model's "
            "config.json): every layer must have the same number of neurons; use a model whose layers are all mixtures"
        )


def _ffn_layer(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], layout: _Layout, index: int
) -> FFNLayer:
    block = ".".join(part for part in (layout.layers, str(index), layout.block) if part)

    def weight_slice(
        module: str, projection: Projection, axis: Literal[0, 1], offset: int = 0
    ) -> WeightSlice:
        name = f"{block}.{module}" + ("" if layout.is_mixture else ".weight")
        return WeightSlice(name, parameters[name], projection, axis, offset)

    down = weight_slice(layout.down, "down_proj", 1)
    *stack, _, size = full_shape(down.parameter)
    num_experts = stack[0] if stack else 1
    if layout.gate is None:
        slices = (weight_slice(layout.up, "up_proj", 0), down)
    else:
        offset = size if layout.gate == layout.up else 0
        slices = (
            weight_slice(layout.gate, "gate_proj", 0),
            weight_slice(layout.up, "up_proj", 0, offset),
            down,
        )
    activation, activation_name = None, ""
    if layout.activation is not None and layout.activation_key is not None:
        activation = getattr(model.get_submodule(block), layout.activation)
        activation_name = getattr(model.config, layout.activation_key)
    return FFNLayer(
        index=index,
        num_neurons=num_experts * size,
        num_experts=num_experts,
        gate=model.get_submodule(block if layout.is_mixture else f"{block}.{layout.gate or layout.up}"),
        gate_output_slice=slice(0, size),
        slices=slices,
        block_name=block,
        activation=activation,
        activation_name=activation_name,
    )


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of the whole parameter, also where ZeRO-3 holds only this rank's part of it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
