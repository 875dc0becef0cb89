"""The masked engine by itself: what it refuses, what it freezes, how it behaves without DeepSpeed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lape_ds.errors import UserError
from lape_ds.subnetwork.masked import MaskedOptimizer, masked_config
from tests.oracles.subnetwork import entry_positions
from tests.subnetwork.zero_cases import NEURONS, micro_batches, neurons_of
from tests.tiny_models import MIXTURES, tiny_model


def test_optimizers_that_are_not_elementwise_are_refused_by_name() -> None:
    neurons = torch.tensor(NEURONS)
    for cls in (torch.optim.Adafactor, torch.optim.Muon, torch.optim.LBFGS):
        with pytest.raises(
            UserError, match=f"{cls.__name__} cannot train a neuron mask: only elementwise .*AdamW.*Lion"
        ):
            MaskedOptimizer(tiny_model("llama"), neurons, cls)


def test_a_subclass_may_do_anything_and_is_refused() -> None:
    class Mine(torch.optim.AdamW):
        pass

    with pytest.raises(UserError, match="Mine cannot train a neuron mask"):
        MaskedOptimizer(tiny_model("llama"), torch.tensor(NEURONS), Mine)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_routers_and_shared_experts_are_frozen(model_type: str) -> None:
    model = tiny_model(model_type)
    MaskedOptimizer(model, torch.tensor(neurons_of(model_type)))
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    assert trained == {
        f"model.layers.{layer}.mlp.experts.{name}"
        for layer in (0, 2)
        for name in ("gate_up_proj", "down_proj")
    }


def test_weights_without_an_entry_are_frozen() -> None:
    model = tiny_model("llama")
    MaskedOptimizer(model, torch.tensor(NEURONS))
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    assert trained == set(entry_positions(tiny_model("llama"), NEURONS))


def test_without_deepspeed_it_is_an_ordinary_optimizer() -> None:
    """A plain torch loop: a backward makes it step, a step before any backward moves nothing."""
    model = tiny_model("llama")
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer = MaskedOptimizer(model, torch.tensor(NEURONS), torch.optim.SGD, lr=0.1, weight_decay=0.1)
    optimizer.step()
    assert all(torch.equal(param, before[name]) for name, param in model.named_parameters())
    ids = micro_batches(0, 1)[0][0]
    model(input_ids=ids, labels=ids).loss.backward()
    grads = {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}
    optimizer.step()
    for name, param in model.named_parameters():
        expected = before[name].clone()
        for row, col in entry_positions(model, NEURONS).get(name, []):
            expected[row, col] -= 0.1 * (grads[name][row, col] + 0.1 * before[name][row, col])
        torch.testing.assert_close(param.detach(), expected, rtol=1e-6, atol=1e-8)


def test_a_second_mask_on_one_model_takes_over() -> None:
    """Not the intersection of both: neuron 3 of layer 0 is in both, 5 in the second alone."""
    model = tiny_model("llama")
    MaskedOptimizer(model, torch.tensor([(0, 0), (0, 3)]), lr=0.1)
    second = MaskedOptimizer(model, torch.tensor([(0, 3), (0, 5)]), lr=0.1)
    weight = model.get_parameter("model.layers.0.mlp.gate_proj.weight")
    before = weight.detach().clone()
    ids = micro_batches(0, 1)[0][0]
    model(input_ids=ids, labels=ids).loss.backward()
    second.step()
    assert (weight != before).any(dim=1).nonzero().flatten().tolist() == [3, 5]


def test_copying_the_optimizer_is_refused() -> None:
    optimizer = MaskedOptimizer(tiny_model("llama"), torch.tensor(NEURONS))
    with pytest.raises(UserError, match="cannot be copied or pickled"):
        copy.deepcopy(optimizer)


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ({"round_robin_gradients": True}, "round_robin_gradients: true reorders"),
        ({"zero_quantized_weights": True}, "zero_quantized_weights: true keeps weights that differ"),
        ({"offload_optimizer": {"device": "nvme"}}, "nvme swaps masters out of reach"),
    ],
    ids=str,
)
def test_settings_that_hide_the_masters_are_refused(zero: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        masked_config({"zero_optimization": {"stage": 3, **zero}})


def test_universal_checkpoints_are_refused() -> None:
    """DeepSpeed's conversion narrows moments that are as large as their weights; a mask's are not."""
    with pytest.raises(UserError, match=r"checkpoint\.load_universal: true needs moments for whole weights"):
        masked_config({"checkpoint": {"load_universal": True}})


def test_masked_config_leaves_the_users_own_alone() -> None:
    config = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 7}, "train_batch_size": 3}
    assert masked_config(config).items() >= config.items()
    assert config == {"zero_optimization": {"stage": 2, "reduce_bucket_size": 7}, "train_batch_size": 3}


def test_masked_config_makes_no_leaf_modules_unless_told() -> None:
    told = masked_config({"zero_optimization": {"stage": 3}})["zero_optimization"]
    assert told == {"stage": 3, "leaf_module": {"classes": []}}
    own = {"zero_optimization": {"stage": 3, "leaf_module": {"classes": ["Mine"]}}}
    assert masked_config(own)["zero_optimization"] == own["zero_optimization"]
