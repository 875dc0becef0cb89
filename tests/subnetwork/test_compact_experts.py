"""Compact experts against plain autograd on the model's own code: outputs, gradients, and what is kept for backward."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from lape_ds.model.ffn import ffn_layers
from lape_ds.subnetwork.compact import insert_slices
from lape_ds.subnetwork.compact_experts import CompactExperts
from lape_ds.subnetwork.entries import entry_masks
from tests.subnetwork.zero_cases import MIXTURE_NEURONS
from tests.tiny_models import HIDDEN_SIZE, MIXTURES, VOCAB_SIZE, tiny_model

NEURONS = torch.tensor(MIXTURE_NEURONS)
EMBEDDING = "model.embed_tokens.weight"


def ids(num_tokens: int) -> Tensor:
    return torch.randint(3, VOCAB_SIZE, (1, num_tokens), generator=torch.Generator().manual_seed(num_tokens))


def dense_gradients(model: PreTrainedModel, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and whole gradients of the experts' weights and the embedding, by transformers' own code."""
    names = [name for name, _ in model.named_parameters() if "experts." in name or name == EMBEDDING]
    loss = model(input_ids=input_ids, labels=input_ids).loss
    return loss, dict(
        zip(names, torch.autograd.grad(loss, [model.get_parameter(name) for name in names]), strict=True)
    )


@pytest.mark.parametrize("num_tokens", [2, 12])  # one token that is scored; and many
@pytest.mark.parametrize(
    ("model_type", "activation"), [*((name, "silu") for name in MIXTURES), ("mixtral", "quick_gelu")]
)
def test_gradients_are_those_of_autograd(model_type: str, activation: str, num_tokens: int) -> None:
    """To the first layer with neurons, and through the layers and routers to the embedding."""
    loss, expected = dense_gradients(tiny_model(model_type, hidden_act=activation), ids(num_tokens))
    model = tiny_model(model_type, hidden_act=activation)
    masks = entry_masks(model, NEURONS)
    trained = insert_slices(model, NEURONS)
    assert [part.name for part in trained] == list(masks)
    model.get_parameter(EMBEDDING).requires_grad_(True)
    got = model(input_ids=ids(num_tokens), labels=ids(num_tokens)).loss
    torch.testing.assert_close(got, loss)
    got.backward()
    for part in trained:
        whole = expected[part.name].contiguous()
        blocks = masks[part.name].blocks(0, whole.numel(), offset=0, device="cpu")
        entries = torch.cat([block.gather(whole.view(-1)) for block in blocks])
        assert part.parameter.grad is not None
        torch.testing.assert_close(part.parameter.grad.flatten(), entries, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(model.get_parameter(EMBEDDING).grad, expected[EMBEDDING], rtol=1e-5, atol=1e-6)
    assert {name for name, param in model.named_parameters() if param.grad is None} >= set(masks)


def test_an_expert_without_tokens_has_a_zero_gradient() -> None:
    """All tokens go to experts 0 and 1; neurons lie in 0, 2 and 3."""
    model = tiny_model("mixtral")
    insert_slices(model, NEURONS)
    experts = ffn_layers(model)[0].gate
    assert isinstance(experts, CompactExperts)
    states = torch.randn(5, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))
    experts(states, torch.tensor([[0, 1]] * 5), torch.full((5, 2), 0.5)).sum().backward()
    gate_up, down = experts.gate_up_slice.grad, experts.down_slice.grad
    assert gate_up is not None
    assert down is not None
    # Three neurons of expert 0 come first: their rows of gate and up, their columns of down.
    assert bool((gate_up[:6] != 0).all())
    assert bool((down[: 3 * HIDDEN_SIZE] != 0).all())
    assert not bool(gate_up[6:].any())
    assert not bool(down[3 * HIDDEN_SIZE :].any())


def test_slices_are_what_the_forward_uses() -> None:
    """A changed slice is the same as a changed weight, and the other entries of the weight stay."""
    model, plain = tiny_model("qwen3_moe"), tiny_model("qwen3_moe")
    masks = entry_masks(plain, NEURONS)
    trained = insert_slices(model, NEURONS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in trained:
            part.parameter.normal_(0.0, 0.2, generator=generator)
            weight = plain.get_parameter(part.name)
            begin = 0
            for block in masks[part.name].blocks(0, weight.numel(), offset=0, device="cpu"):
                block.scatter(weight.view(-1), part.parameter.flatten()[begin : begin + block.num_entries])
                begin += block.num_entries
        torch.testing.assert_close(model(ids(12)).logits, plain(ids(12)).logits)
    for name, param in plain.named_parameters():
        assert torch.equal(model.get_parameter(name), param), name


def test_nothing_the_size_of_a_weight_is_kept() -> None:
    """Of every layer: its routing, its input where neurons train, and the output of gate_up_proj."""
    model = tiny_model("mixtral")
    insert_slices(model, NEURONS)
    layers = [layer.gate for layer in ffn_layers(model)]
    for layer, experts in enumerate(layers):
        assert isinstance(experts, CompactExperts)
        kept: list[Tensor] = []
        states = torch.randn(7, HIDDEN_SIZE, requires_grad=True)
        with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):  # noqa: B023
            experts(states, torch.tensor([[0, 1]] * 3 + [[2, 3]] * 4), torch.full((7, 2), 0.5))
        sizes = Counter(tensor.numel() for tensor in kept)
        expected = Counter([14, 14, 3 * 46, 3 * 46, 4 * 46, 4 * 46]) + Counter(
            [7 * HIDDEN_SIZE] if layer != 1 else []
        )
        assert sizes == expected
        weights = {experts.gate_up_proj.data_ptr(), experts.down_proj.data_ptr()}
        assert not weights & {tensor.untyped_storage().data_ptr() for tensor in kept}


def test_layers_below_the_first_neuron_are_left_alone() -> None:
    model = tiny_model("mixtral")
    before = [layer.gate for layer in ffn_layers(model)]
    insert_slices(model, torch.tensor([(1, 3), (2, 91)]))
    after: list[nn.Module] = [layer.gate for layer in ffn_layers(model)]
    assert after[0] is before[0]
    assert [isinstance(experts, CompactExperts) for experts in after] == [False, True, True]
