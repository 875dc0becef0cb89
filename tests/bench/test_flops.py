"""The formula against torch's count of the operators that a real step runs."""

from __future__ import annotations

import pytest
import torch

from lape_ds.bench.contenders import contender
from lape_ds.bench.flops import model_flops
from lape_ds.bench.shapes import build_model, random_batch
from tests.bench.shapes import NEURONS, TINY

CPU = torch.device("cpu")
LAYERS, TOKENS, HIDDEN = 3, 48, 32
# The attention kernel computes its [T, T] scores again in backward: 2 T D a token and layer that no model needs.
SCORES_AGAIN = LAYERS * 2 * TOKENS * 24 * HIDDEN


@pytest.mark.parametrize("name", ["full", "floor", "lora_all"])
def test_formula_is_what_the_step_runs(name: str) -> None:
    made = contender(name, build_model(TINY, CPU, 0), NEURONS, learning_rate=1e-3)
    run = made.measure(random_batch(TINY, CPU, 0)).executed_flops
    formula = model_flops(TINY, name, num_trained=made.num_trained, first_layer=0)
    # The first layer's LoRA on q, k, v needs no gradient of its input: three products of [T, D] and [D, D or D / 2].
    not_needed = {"lora_all": 2 * TOKENS * HIDDEN * 2 * HIDDEN + 2 * TOKENS * 3 * 16 * HIDDEN}
    assert run == formula + SCORES_AGAIN - not_needed.get(name, 0)


def test_a_subnetwork_needs_its_own_layers_only() -> None:
    """From layer 1 on: one layer less to go back through than from layer 0, and gradients of the trained entries."""
    from_first = model_flops(TINY, "compact", num_trained=0, first_layer=0)
    layer = 2 * TOKENS * (2 * HIDDEN * 32 + 2 * HIDDEN * 16 + 3 * HIDDEN * 48) + 2 * 4 * TOKENS * 24 * HIDDEN
    assert model_flops(TINY, "compact", num_trained=100, first_layer=1) == (
        from_first - layer + 2 * TOKENS * 100
    )
