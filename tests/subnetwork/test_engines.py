"""Both engines against a single-process oracle, for every ZeRO stage, one and two ranks, real processes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file

from lape_ds.model.ffn import ffn_layers
from tests.oracles.subnetwork import OracleResult, entry_positions, train_entries
from tests.processes import run_ranks
from tests.selection import as_param, selected_cases
from tests.subnetwork.ulps import ulps_apart
from tests.subnetwork.zero_cases import (
    ACCUMULATION,
    CHECKPOINT_METHODS,
    MAX_NORM,
    OPTIMIZERS,
    STEPS,
    Case,
    all_cases,
    is_short,
    learning_rate,
    micro_batches,
    neurons_of,
)
from tests.tiny_models import tiny_model

# exp_avg and exp_avg_sq; momentum_buffer; exp_avg: fp32
MOMENT_BYTES = {"adamw": 8, "adam": 8, "sgd": 4, "lion": 4}


@pytest.fixture(scope="session", params=[1, 2], ids=["1rank", "2ranks"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """The cases of the tests that were selected."""
    out = tmp_path_factory.mktemp(f"engines-{request.param}")
    names = selected_cases(request.session, all_cases())
    run_ranks("tests.subnetwork.zero_worker", [str(out), *names], world_size=request.param, timeout=900)
    return request.param, out


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks that keep checkpoints and go on from them."""
    out = tmp_path_factory.mktemp("checkpoints")
    run_ranks("tests.subnetwork.zero_worker", [str(out)], world_size=2, timeout=900)
    return out


@functools.cache
def oracle(
    world_size: int, dtype: str, optimizer: str, model_type: str, bf16_sums: bool, anchor: float
) -> OracleResult:
    model = tiny_model(model_type, dtype=getattr(torch, dtype))
    settings = OPTIMIZERS[optimizer][1]
    build = cast("Callable[..., torch.optim.Optimizer]", OPTIMIZERS[optimizer][0])
    return train_entries(
        model,
        neurons_of(model_type),
        lambda step: micro_batches(step, world_size, model_type),
        steps=STEPS,
        make_optimizer=lambda params: build(params, lr=learning_rate(0), **settings),
        learning_rate=learning_rate,
        max_norm=MAX_NORM,
        bf16_sums=bf16_sums,
        anchor=anchor,
    )


@pytest.mark.parametrize(
    "case", [as_param(case, case.name, is_long=not is_short(case)) for case in all_cases()]
)
class TestAgainstOracle:
    def expected(self, world_size: int, case: Case) -> OracleResult:
        # Stage 0 in bf16 is the one place where DeepSpeed can only sum gradients in bf16.
        bf16_sums = case.stage == 0 and case.dtype == "bfloat16"
        return oracle(world_size, case.dtype, case.optimizer, case.model_type, bf16_sums, case.anchor)

    def test_outside_is_bit_equal_to_the_base(self, trained: tuple[int, Path], case: Case) -> None:
        base = dict(tiny_model(case.model_type, dtype=getattr(torch, case.dtype)).named_parameters())
        positions = entry_positions(tiny_model(case.model_type), case.neurons)
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
        for name in entry_positions(tiny_model(case.model_type), case.neurons):
            if case.dtype == "float32":
                torch.testing.assert_close(got[name], expected.weights[name], rtol=1e-5, atol=1e-7)
            else:
                assert ulps_apart(got[name], expected.weights[name]) <= 1, name

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
        entries = sum(
            len(pairs) for pairs in entry_positions(tiny_model(case.model_type), case.neurons).values()
        )
        per_rank = json.loads((out / f"{case.name}.json").read_text())["moment_bytes"]
        replicas = world_size if case.stage == 0 else 1
        assert sum(per_rank) == MOMENT_BYTES[case.optimizer] * entries * replicas

    def test_memory_told_at_start(self, trained: tuple[int, Path], case: Case) -> None:
        world_size, out = trained
        told = json.loads((out / f"{case.name}.json").read_text())
        model = tiny_model(case.model_type)
        shapes = {name: param.numel() for name, param in model.named_parameters()}
        positions = entry_positions(model, case.neurons)
        entries = sum(len(pairs) for pairs in positions.values())
        # DeepSpeed keeps masters and gradients of whole tensors: of the weights, or of the slices.
        trained_tensors = sum(shapes[name] for name in positions) if case.engine == "masked" else entries
        slices = entries if case.engine == "compact" else 0
        shared = world_size if case.stage else 1
        own_copy = (
            case.dtype == "bfloat16" or case.stage > 0
        )  # ZeRO-3 copies masters in fp32 too (DeepSpeed 0.19.8)
        is_bf16 = case.dtype == "bfloat16"
        # Stage 1 in bf16 keeps the last micro-batch's beside the sum (DeepSpeed's BF16_Optimizer); not with offload.
        apart = 2 if is_bf16 and case.offload == "none" else 0
        accumulated = {0: 2 if is_bf16 else 4, 1: (4 + apart) * world_size}.get(case.stage, 4)
        expected = {
            "weights": (2 if case.dtype == "bfloat16" else 4)
            * (sum(shapes.values()) + slices)
            / (world_size if case.stage == 3 else 1),
            "masters": 4 * trained_tensors / shared if own_copy else 0,
            "gradients": accumulated * trained_tensors / shared,
            "moments": told["moment_bytes"][0],
        }
        assert told["memory"] == pytest.approx(expected, rel=0.02)  # padding to the number of ranks


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_the_mixture_cases_leave_experts_without_tokens(model_type: str) -> None:
    """Experts with trained neurons: one on one rank alone, and one on both, in a micro-batch of some step."""
    model = tiny_model(model_type)
    idle: list[set[int]] = []
    first, *_ = ffn_layers(model)
    first.gate.register_forward_pre_hook(
        lambda module, args: idle.append({0, 2, 3} - set(args[1].flatten().tolist()))
    )
    with torch.no_grad():
        for step in range(STEPS):
            for rank in micro_batches(step, 2, model_type):
                for input_ids in rank:
                    model(input_ids)
    by_step = torch.tensor([len(experts) for experts in idle]).view(STEPS, 2, -1)
    together = [
        idle[i] & idle[i + ACCUMULATION] for step in range(STEPS) for i in range(4 * step, 4 * step + 2)
    ]
    assert bool((by_step.sum(1) == 1).any())
    assert any(together)


def test_ulps_oracle() -> None:
    one = torch.tensor([1.0, -1.0, 0.0], dtype=torch.bfloat16)
    next_up = torch.tensor([1.0078125, -1.0, -0.0], dtype=torch.bfloat16)  # 1 + 2**-7 is bf16's next after 1
    assert ulps_apart(one, next_up) == 1


def test_stage_0_in_bf16_takes_no_step_while_it_is_set_up(interrupted: Path) -> None:
    """DeepSpeed steps once on zero gradients there: AdamW's masters would be (1 - lr * weight_decay) of the weights."""
    told = json.loads((interrupted / "setup.json").read_text())
    assert told == {key: {"moved": False, "steps": 0} for key in ("masked", "compact", "full")}


def test_our_checkpoints_go_on_bit_for_bit(interrupted: Path) -> None:
    """Four steps at once against two, a checkpoint into a fresh engine, two more; across engines to the last bf16 digit."""
    same = json.loads((interrupted / "our_checkpoints.json").read_text())
    assert len(same) == 4 * len(CHECKPOINT_METHODS)
    assert all(same.values()), same


def test_deepspeeds_own_checkpoints_work(interrupted: Path) -> None:
    """`engine.save_checkpoint` and `load_checkpoint`, stages 1 to 3: interrupted equals uninterrupted, bit for bit."""
    assert json.loads((interrupted / "own_checkpoints.json").read_text()) == {"1": True, "2": True, "3": True}
