"""Experts run one by one are the experts module, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lape_ds.model.experts import routes, run_experts, unhook_activations
from lape_ds.model.ffn import ffn_layers
from tests.tiny_models import HIDDEN_SIZE, MIXTURES, tiny_model

TOKENS = 9


def routing(num_chosen: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """States [9, hidden], and for each token 2 of the experts 0, 1 and 3 with weights: expert 2 gets nothing."""
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(TOKENS, HIDDEN_SIZE, generator=generator)
    shuffled = torch.stack([torch.randperm(3, generator=generator)[:num_chosen] for _ in range(TOKENS)])
    return states, torch.tensor([0, 1, 3])[shuffled], torch.rand(TOKENS, num_chosen, generator=generator)


def test_routes_name_every_choice_once() -> None:
    _, index, _ = routing()
    seen = [
        (expert, token, choice)
        for expert, tokens, choices in routes(index, 4)
        for token, choice in zip(tokens.tolist(), choices.tolist(), strict=True)
    ]
    expected = [(int(index[token, choice]), token, choice) for token in range(TOKENS) for choice in range(2)]
    assert sorted(seen) == sorted(expected)
    assert [expert for expert, _, _ in routes(index, 4)] == [0, 1, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model_type", MIXTURES)
def test_equals_the_eager_module(model_type: str, dtype: torch.dtype) -> None:
    experts = ffn_layers(tiny_model(model_type, dtype=dtype))[1].gate
    states, index, weights = routing()
    states, weights = states.to(dtype), weights.to(dtype)
    gates: dict[tuple[int, int], Tensor] = {}

    def see(expert: int, tokens: Tensor, gate_up: Tensor) -> None:
        gates.update({(expert, int(token)): row for token, row in zip(tokens, gate_up, strict=True)})

    with torch.no_grad():
        assert torch.equal(run_experts(experts, states, index, weights, see), experts(states, index, weights))
    assert gates.keys() == {(int(expert), token) for token in range(TOKENS) for expert in index[token]}
    fused = experts.get_parameter("gate_up_proj").detach().double()
    for (expert, token), gate in gates.items():
        expected = torch.stack([states[token].double() @ row for row in fused[expert]])
        torch.testing.assert_close(
            gate.double(), expected, rtol=1e-2, atol=1e-5 if dtype == torch.float32 else 1e-2
        )


def test_grouped_mm_differs_in_rounding_only() -> None:
    """The implementation that transformers chooses by itself; it wants an even size here."""
    model = tiny_model("mixtral", intermediate_size=24)
    model.set_experts_implementation("grouped_mm")
    experts = ffn_layers(model)[1].gate
    states, index, weights = routing()
    with torch.no_grad():
        ours = run_experts(experts, states, index, weights, lambda expert, tokens, gate_up: None)
        torch.testing.assert_close(ours, experts(states, index, weights))


@pytest.mark.parametrize("model_type", MIXTURES)
def test_unhooked_activations_compute_the_same(model_type: str) -> None:
    model = tiny_model(model_type)
    experts = ffn_layers(model)[1].gate
    with torch.no_grad():
        before = experts(*routing())
        unhook_activations(model)
        unhook_activations(model)  # a second engine on the model
        assert torch.equal(experts(*routing()), before)
    assert not list(experts.children())


def test_activations_of_dense_models_stay_modules() -> None:
    for model_type in ("llama", "phi3"):
        model = tiny_model(model_type)
        names = [name for name, _ in model.named_modules()]
        unhook_activations(model)
        assert [name for name, _ in model.named_modules()] == names
