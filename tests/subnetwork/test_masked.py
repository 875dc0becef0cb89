"""The masked engine against a single-process oracle, for every ZeRO stage, one and two ranks, real processes."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.subnetwork.masked import MaskedOptimizer, masked_config
from tests.oracles.subnetwork import OracleResult, entry_positions, train_entries
from tests.processes import run_ranks
from tests.subnetwork.zero_cases import (
    MAX_NORM,
    NEURONS,
    OPTIMIZERS,
    STEPS,
    Case,
    all_cases,
    learning_rate,
    micro_batches,
)
from tests.tiny_models import tiny_model

# exp_avg and exp_avg_sq; momentum_buffer; exp_avg: fp32
MOMENT_BYTES = {"adamw": 8, "adam": 8, "sgd": 4, "lion": 4}


@pytest.fixture(scope="session", params=[1, 2], ids=["1rank", "2ranks"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    out = tmp_path_factory.mktemp(f"masked-{request.param}")
    run_ranks("tests.subnetwork.zero_worker", [str(out)], world_size=request.param)
    return request.param, out


@functools.cache
def oracle(world_size: int, dtype: str, optimizer: str, model_type: str, bf16_sums: bool) -> OracleResult:
    model = tiny_model(model_type, dtype=getattr(torch, dtype))
    settings = OPTIMIZERS[optimizer][1]
    build = cast("Callable[..., torch.optim.Optimizer]", OPTIMIZERS[optimizer][0])
    return train_entries(
        model,
        NEURONS,
        lambda step: micro_batches(step, world_size),
        steps=STEPS,
        make_optimizer=lambda params: build(params, lr=learning_rate(0), **settings),
        learning_rate=learning_rate,
        max_norm=MAX_NORM,
        bf16_sums=bf16_sums,
    )


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
class TestAgainstOracle:
    def expected(self, world_size: int, case: Case) -> OracleResult:
        # Stage 0 in bf16 is the one place where DeepSpeed can only sum gradients in bf16.
        bf16_sums = case.stage == 0 and case.dtype == "bfloat16"
        return oracle(world_size, case.dtype, case.optimizer, case.model_type, bf16_sums)

    def test_outside_is_bit_equal_to_the_base(self, trained: tuple[int, Path], case: Case) -> None:
        base = dict(tiny_model(case.model_type, dtype=getattr(torch, case.dtype)).named_parameters())
        positions = entry_positions(tiny_model(case.model_type), NEURONS)
        got = load_file(trained[1] / f"{case.name}.safetensors")
        assert got.keys() == base.keys()
        for name, weight in got.items():
            outside = torch.ones_like(weight, dtype=torch.bool)
            if name in positions:
                outside[tuple(torch.tensor(positions[name]).T)] = False
                assert bool((weight != base[name])[~outside].any()), f"{name} did not train"
            assert torch.equal(weight[outside], base[name].detach()[outside]), name

    def test_inside_agrees(self, trained: tuple[int, Path], case: Case) -> None:
        world_size, out = trained
        expected = self.expected(world_size, case)
        got = load_file(out / f"{case.name}.safetensors")
        for name in entry_positions(tiny_model(case.model_type), NEURONS):
            if case.dtype == "float32":
                torch.testing.assert_close(got[name], expected.weights[name], rtol=1e-5, atol=1e-7)
            else:
                assert bf16_ulps_apart(got[name], expected.weights[name]) <= 1, name

    def test_reported_norm_is_the_oracles(self, trained: tuple[int, Path], case: Case) -> None:
        world_size, out = trained
        norms = json.loads((out / f"{case.name}.json").read_text())["norms"]
        expected = self.expected(world_size, case).norms
        assert all(norm > MAX_NORM for norm in expected), "clipping must bite"
        rtol = 1e-5 if case.dtype == "float32" else 2e-2  # the norm of a bf16 model moves with its last bits
        torch.testing.assert_close(
            torch.tensor(norms), torch.tensor(expected), rtol=rtol, atol=0.0, check_dtype=False
        )

    def test_moments_exist_for_trained_entries_only(self, trained: tuple[int, Path], case: Case) -> None:
        world_size, out = trained
        entries = sum(len(pairs) for pairs in entry_positions(tiny_model(case.model_type), NEURONS).values())
        per_rank = json.loads((out / f"{case.name}.json").read_text())["moment_bytes"]
        replicas = world_size if case.stage == 0 else 1
        assert sum(per_rank) == MOMENT_BYTES[case.optimizer] * entries * replicas

    def test_memory_told_at_start(self, trained: tuple[int, Path], case: Case) -> None:
        world_size, out = trained
        told = json.loads((out / f"{case.name}.json").read_text())
        model = tiny_model(case.model_type)
        shapes = {name: param.numel() for name, param in model.named_parameters()}
        dense = sum(shapes[name] for name in entry_positions(model, NEURONS))
        shared = world_size if case.stage else 1
        own_copy = (
            case.dtype == "bfloat16" or case.stage > 0
        )  # ZeRO-3 copies masters in fp32 too (DeepSpeed 0.19.8)
        accumulated = {0: 2 if case.dtype == "bfloat16" else 4, 1: 4 * world_size}.get(case.stage, 4)
        expected = {
            "weights": (2 if case.dtype == "bfloat16" else 4)
            * sum(shapes.values())
            / (world_size if case.stage == 3 else 1),
            "masters": 4 * dense / shared if own_copy else 0,
            "gradients": accumulated * dense / shared,
            "moments": told["moment_bytes"][0],
        }
        assert told["memory"] == pytest.approx(expected, rel=0.02)  # padding to the number of ranks


def bf16_ulps_apart(left: Tensor, right: Tensor) -> int:
    """Largest distance in units of the last place, across zero too."""

    def ordered(tensor: Tensor) -> Tensor:
        bits = tensor.view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return int((ordered(left) - ordered(right)).abs().max())


def test_ulps_oracle() -> None:
    one = torch.tensor([1.0, -1.0, 0.0], dtype=torch.bfloat16)
    next_up = torch.tensor([1.0078125, -1.0, -0.0], dtype=torch.bfloat16)  # 1 + 2**-7 is bf16's next after 1
    assert bf16_ulps_apart(one, next_up) == 1


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


def test_masked_config_leaves_the_users_own_alone() -> None:
    config = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 7}, "train_batch_size": 3}
    assert masked_config(config).items() >= config.items()
    assert config == {"zero_optimization": {"stage": 2, "reduce_bucket_size": 7}, "train_batch_size": 3}


def test_stage_0_in_bf16_takes_no_step_while_it_is_set_up(trained: tuple[int, Path]) -> None:
    """DeepSpeed steps once on zero gradients there: AdamW's masters would be (1 - lr * weight_decay) of the weights."""
    told = json.loads((trained[1] / "setup.json").read_text())
    assert told == {"masked": {"moved": False, "steps": 0}, "full": {"moved": False, "steps": 0}}


def test_our_checkpoints_go_on_bit_for_bit(trained: tuple[int, Path]) -> None:
    """Four steps at once against two, a checkpoint into a fresh engine, two more: masks and whole weights."""
    same = json.loads((trained[1] / "our_checkpoints.json").read_text())
    assert same == {f"{method}-z{stage}": True for method in ("masked", "full") for stage in (0, 1, 2, 3)}


def test_deepspeeds_own_checkpoints_work(trained: tuple[int, Path]) -> None:
    """`engine.save_checkpoint` and `load_checkpoint`, stages 1 to 3: interrupted equals uninterrupted, bit for bit."""
    assert json.loads((trained[1] / "own_checkpoints.json").read_text()) == {"1": True, "2": True, "3": True}
