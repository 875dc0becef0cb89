import pytest
import torch

from lape_ds.bench.shapes import (
    SHAPES,
    build_model,
    draw_neurons,
    find_shape,
    neurons_per_layer,
    random_batch,
)
from lape_ds.errors import UserError
from tests.bench.shapes import TINY


def test_published_counts() -> None:
    """3,015 and 3,611 neurons of Maltese: table of the published sets (arXiv 2510.13580)."""
    llama, nemo = neurons_per_layer("llama-3.1-8b", "mt"), neurons_per_layer("mistral-nemo-12b", "mt")
    assert (len(llama), sum(llama)) == (32, 3015)
    assert (len(nemo), sum(nemo)) == (40, 3611)


def test_maltese_on_another_depth() -> None:
    """Layers 1, 4, 6, 9, … of Llama's 32 by their share of 14,336, worked out by hand; empty ones stay empty."""
    assert neurons_per_layer("cpu-100m", "mt") == (13, 0, 0, 0, 0, 1, 2, 3, 3, 66, 107, 31)


def test_uniform() -> None:
    assert neurons_per_layer("cpu-100m", "uniform-1%") == (27,) * 12  # round(26.88)


@pytest.mark.parametrize(
    ("shape", "neurons", "expected"),
    [("llama-3.1-8b", "en", "--neurons en: no such choice; allowed: uniform-1%, mt")],
)
def test_unknown_neurons(shape: str, neurons: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        neurons_per_layer(shape, neurons)


def test_unknown_shape() -> None:
    with pytest.raises(UserError, match="--shape gpt: no such shape; allowed: cpu-100m, llama"):
        find_shape("gpt")


def test_drawn_neurons() -> None:
    neurons = draw_neurons((2, 0, 48), 48, seed=1)
    assert neurons[:, 0].tolist() == [0] * 2 + [2] * 48
    assert neurons[2:, 1].tolist() == list(range(48))  # all of them, sorted
    assert torch.equal(neurons, draw_neurons((2, 0, 48), 48, seed=1))


@pytest.mark.parametrize(
    ("name", "billions"),
    [("llama-3.1-8b", 8.03), ("mistral-nemo-12b", 12.25)],  # the model cards' numbers of parameters
)
def test_true_shapes_have_the_models_size(name: str, billions: float) -> None:
    model = build_model(SHAPES[name], torch.device("meta"), seed=0)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_every_position_predicts_the_next_token() -> None:
    batch = random_batch(TINY, torch.device("cpu"), seed=0)
    assert batch.input_ids.shape == (2, 24)
    assert torch.equal(batch.targets[:, :-1], batch.input_ids[:, 1:])
