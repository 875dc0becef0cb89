"""The chunked loss under ZeRO, real processes: heads and tied embeddings train as under plain autograd in one process."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from tests.model.zero_loss_cases import (
    LEARNING_RATE,
    STEPS,
    Case,
    all_cases,
    batches,
    num_scored,
    trained_names,
)
from tests.processes import run_ranks


@pytest.fixture(scope="module", params=[1, 2], ids=["1rank", "2ranks"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp(f"loss-{request.param}")
    run_ranks("tests.model.zero_loss_worker", [str(out)], world_size=request.param)
    return out


@functools.cache
def oracle(model_type: str, tied: bool, part: str) -> dict[str, Tensor]:
    """SGD on the whole batch with the model's own logits."""
    case = next(c for c in all_cases() if (c.model_type, c.tied, c.trained) == (model_type, tied, part))
    model = case.model()
    parameters = dict(model.named_parameters())
    for step in range(STEPS):
        ids, targets = batches(step)
        logits = model(ids, use_cache=False).logits
        nll = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        names = trained_names(case, model)
        grads = torch.autograd.grad(nll / num_scored(step), [parameters[name] for name in names])
        with torch.no_grad():
            for name, grad in zip(names, grads, strict=True):
                parameters[name].sub_(LEARNING_RATE * grad)
    return {name: param.detach() for name, param in parameters.items()}


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_weights_agree(trained: Path, case: Case) -> None:
    expected = oracle(case.model_type, case.tied, case.trained)
    got = load_file(trained / f"{case.name}.safetensors")
    before = dict(case.model().named_parameters())
    assert got.keys() == expected.keys()
    for name in trained_names(case, case.model()):
        assert not torch.equal(got[name], before[name]), f"{name} did not train"
    for name, weight in expected.items():
        torch.testing.assert_close(got[name], weight, rtol=1e-5, atol=1e-6, msg=name)
