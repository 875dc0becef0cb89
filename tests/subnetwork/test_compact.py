"""The compact engine by itself, against plain autograd over whole weights; with DeepSpeed it is in test_engines.py."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lape_ds.errors import UserError
from lape_ds.model.ffn import decoder_layers, ffn_layers
from lape_ds.subnetwork.compact import CompactFFN, insert_slices
from lape_ds.subnetwork.entries import entry_masks
from lape_ds.subnetwork.recomputing import recompute_layers
from tests.tiny_models import MODEL_TYPES, tiny_model

# The first layer empty, the second with several, the third with one.
NEURONS = torch.tensor([(1, 0), (1, 3), (1, 4), (1, 22), (2, 7)])
IDS = torch.randint(3, 61, (2, 12), generator=torch.Generator().manual_seed(7))


def loss_of(model: PreTrainedModel) -> Tensor:
    return model(input_ids=IDS, labels=IDS, use_cache=False).loss


def dense_gradients(model: PreTrainedModel) -> tuple[float, dict[str, Tensor]]:
    """Loss and the trained entries of every weight's whole gradient, row-major."""
    masks = entry_masks(model, NEURONS)
    loss = loss_of(model)
    loss.backward()
    grads = {}
    for name, mask in masks.items():
        grad = model.get_parameter(name).grad
        assert grad is not None
        blocks = mask.blocks(0, grad.numel(), offset=0, device="cpu")
        grads[name] = torch.cat([block.gather(grad.flatten()) for block in blocks])
    return loss.item(), grads


def compact_gradients(model: PreTrainedModel) -> tuple[float, dict[str, Tensor]]:
    """The same from the slices; several parameters may hold parts of one weight."""
    trained = insert_slices(model, NEURONS)
    return _backward(model, [(part.name, part.start, part.parameter) for part in trained])


def _backward(
    model: PreTrainedModel, trained: list[tuple[str, int, torch.nn.Parameter]]
) -> tuple[float, dict[str, Tensor]]:
    loss = loss_of(model)
    loss.backward()
    grads: dict[str, list[Tensor]] = {}
    for name, _, parameter in sorted(trained, key=lambda part: part[:2]):
        assert parameter.grad is not None
        grads.setdefault(name, []).append(parameter.grad.flatten())
    return loss.item(), {name: torch.cat(parts) for name, parts in grads.items()}


def assert_alike(
    got: tuple[float, dict[str, Tensor]], expected: tuple[float, dict[str, Tensor]], *, rtol: float = 1e-5
) -> None:
    assert got[0] == pytest.approx(expected[0], rel=1e-6)
    assert got[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        torch.testing.assert_close(got[1][name], grad, rtol=rtol, atol=1e-8)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_gradients_are_those_of_whole_weights(model_type: str) -> None:
    expected = dense_gradients(tiny_model(model_type))
    assert_alike(compact_gradients(tiny_model(model_type)), expected)


ACTIVATIONS = "silu swish gelu gelu_new gelu_fast gelu_python gelu_pytorch_tanh gelu_accurate quick_gelu relu relu2 leaky_relu"


@pytest.mark.parametrize("activation", ACTIVATIONS.split())
def test_every_activation_is_differentiated(activation: str) -> None:
    expected = dense_gradients(tiny_model("llama", hidden_act=activation))
    assert_alike(compact_gradients(tiny_model("llama", hidden_act=activation)), expected)


def test_biases_are_used_and_stay_frozen() -> None:
    expected = dense_gradients(tiny_model("llama", mlp_bias=True))
    model = tiny_model("llama", mlp_bias=True)
    assert_alike(compact_gradients(model), expected)
    assert all(param.grad is None for name, param in model.named_parameters() if name.endswith("bias"))


def test_names_of_the_models_own_weights_stay() -> None:
    for model_type in ("llama", "phi3", "opt"):
        model = tiny_model(model_type)
        before = [name for name, _ in model.named_parameters()]
        insert_slices(model, NEURONS)
        after = [name for name, _ in model.named_parameters() if not name.endswith("slice")]
        assert sorted(after) == sorted(before)
        assert [layer.num_neurons for layer in ffn_layers(model)] == [23, 23, 23]


def test_no_frozen_weight_gets_a_gradient_or_moves() -> None:
    model = tiny_model("llama")
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    compact_gradients(model)
    for name, weight in before.items():
        assert model.get_parameter(name).grad is None, name
        assert torch.equal(model.get_parameter(name), weight), name  # the slices still hold the base's values


def saved_for_backward(model: PreTrainedModel, module: torch.nn.Module) -> dict[int, int]:
    """Bytes that autograd keeps of one call of a module, by storage; parameters do not count."""
    parameters = {param.untyped_storage().data_ptr() for param in model.parameters()}
    kept: dict[int, int] = {}
    inside = False

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if inside and storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def enter(*_: object) -> None:
        nonlocal inside
        inside = True

    def leave(*_: object) -> None:
        nonlocal inside
        inside = False

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(model)
    for handle in handles:
        handle.remove()
    return kept


@pytest.mark.parametrize(("layer", "floats"), [(0, 0), (1, 16 + 2 * 23), (2, 16 + 2 * 23)])
def test_a_block_keeps_its_input_and_two_projections(layer: int, floats: int) -> None:
    """Per token D + 2·I floats in fp32; nothing in front of the first trained layer."""
    model = tiny_model("llama")
    insert_slices(model, NEURONS)
    block = decoder_layers(model)[layer].get_submodule("mlp")
    assert sum(saved_for_backward(model, block).values()) == IDS.numel() * floats * 4


def test_a_block_without_neurons_keeps_the_two_projections_only() -> None:
    model = tiny_model("llama")
    insert_slices(model, torch.tensor([(0, 1)]))
    block = decoder_layers(model)[2].get_submodule("mlp")
    assert isinstance(block, CompactFFN)
    assert sum(saved_for_backward(model, block).values()) == IDS.numel() * 2 * 23 * 4


def test_backward_stops_at_the_first_trained_block() -> None:
    model = tiny_model("llama")
    insert_slices(model, NEURONS)
    asked: dict[int, bool] = {}

    def remember(number: int, _: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        asked[number] = args[0].requires_grad

    for number, layer in enumerate(decoder_layers(model)):
        layer.get_submodule("mlp").register_forward_pre_hook(partial(remember, number))
    loss_of(model)
    assert asked == {0: False, 1: False, 2: True}


@pytest.mark.parametrize("kind", ["non_reentrant", "reentrant"])
@pytest.mark.parametrize("model_type", ["llama", "phi3", "phi", "gpt_neox", "opt"])
def test_recomputed_layers_give_the_same_gradients(
    model_type: str, kind: Literal["non_reentrant", "reentrant"]
) -> None:
    settings: dict[str, Any] = {"dropout": 0.0} if model_type == "opt" else {}
    expected = compact_gradients(tiny_model(model_type, **settings).train())
    model = tiny_model(model_type, **settings).train()
    trained = insert_slices(model, NEURONS)
    recompute_layers(model, kind)
    assert_alike(_backward(model, [(part.name, part.start, part.parameter) for part in trained]), expected)


@pytest.mark.filterwarnings("default")  # Dynamo touches things that warn
def test_compiled_layers_give_the_same_gradients() -> None:
    """Traced through autograd without a compiler (aot_eager); the default one needs a C++ compiler and a minute."""
    expected = compact_gradients(tiny_model("llama"))
    model = tiny_model("llama")
    trained = insert_slices(model, NEURONS)
    for layer in decoder_layers(model):
        layer.compile(backend="aot_eager")
    assert_alike(_backward(model, [(part.name, part.start, part.parameter) for part in trained]), expected)


def test_a_step_shows_in_the_next_forward() -> None:
    """The weight itself takes the slices' values; nothing else of it changes."""
    model = tiny_model("llama")
    trained = insert_slices(model, NEURONS)
    before = model.get_parameter("model.layers.1.mlp.down_proj.weight").detach().clone()
    with torch.no_grad():
        for part in trained:
            part.parameter.add_(1.0)
        loss_of(model)
    after = model.get_parameter("model.layers.1.mlp.down_proj.weight")
    assert (after != before).any(0).nonzero().flatten().tolist() == [0, 3, 4, 22]
    torch.testing.assert_close(after[:, [0, 3, 4, 22]], before[:, [0, 3, 4, 22]] + 1)


def test_neurons_outside_the_model_are_refused() -> None:
    with pytest.raises(UserError, match=r"neuron \(layer 3, index 0\) is not in this model"):
        insert_slices(tiny_model("llama"), torch.tensor([[3, 0]]))
