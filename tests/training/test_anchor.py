"""Training held to the base model on replayed text, with real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.test_train import run, steps_of

REPLAY = ["train.replay.share=0.5", "train.heldout.every_steps=6"]
SETTINGS = [*REPLAY, "train.method=full"]  # all weights move
KEY = "kl_per_replayed_token"


@pytest.fixture(scope="module")
def anchored(tiny_recipe: Path) -> Path:
    """One rank, ZeRO-2."""
    return run(tiny_recipe, "anchored", "train.anchor.kl=100", *SETTINGS)


@pytest.fixture(scope="module")
def nearly_free(tiny_recipe: Path) -> Path:
    """The same with an anchor of next to nothing."""
    return run(tiny_recipe, "nearly-free", "train.anchor.kl=1e-6", *SETTINGS)


def test_an_anchor_holds(anchored: Path, nearly_free: Path) -> None:
    """Nothing diverges before the first step; then the anchored run stays nearer to the base, at some cost of its gain."""
    near, far = steps_of(anchored, KEY), steps_of(nearly_free, KEY)
    assert near[0] == pytest.approx(0.0, abs=1e-6)
    assert steps_of(anchored)[0] == steps_of(nearly_free)[0]
    assert all(0 < ours < theirs for ours, theirs in zip(near[2:], far[2:], strict=True))
    assert near[-1] < 0.3 * far[-1]
    assert steps_of(anchored)[-1] > steps_of(nearly_free)[-1]


def test_without_an_anchor(tiny_recipe: Path, nearly_free: Path) -> None:
    without = run(tiny_recipe, "free", *SETTINGS)
    assert steps_of(without, KEY) == []
    assert steps_of(without) == pytest.approx(steps_of(nearly_free), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "world_size", "overrides"),
    [
        ("anchored-zero3", 2, ["deepspeed.zero_stage=3", "train.gradient_accumulation_steps=1"]),
        (
            "anchored-zero0",
            1,
            ["deepspeed.zero_stage=0", "train.micro_batch_size=1", "train.gradient_accumulation_steps=4"],
        ),
    ],
)
def test_any_layout_gives_the_same_run(
    tiny_recipe: Path, anchored: Path, name: str, world_size: int, overrides: list[str]
) -> None:
    """Micro-batches with and without replayed rows, on one rank or the other."""
    same_run(
        run(tiny_recipe, name, "train.anchor.kl=100", *SETTINGS, *overrides, world_size=world_size), anchored
    )


def test_a_subnetwork_is_held_too(tiny_recipe: Path) -> None:
    """The default method, whose engine changes the model that the base is a copy of."""
    settings = ["train.anchor.kl=100", *REPLAY]
    one = run(tiny_recipe, "anchored-subnetwork", *settings)
    assert steps_of(one, KEY)[0] == pytest.approx(0.0, abs=1e-6)
    assert steps_of(one, KEY)[-1] > 1e-6
    layout = ["deepspeed.zero_stage=3", "train.gradient_accumulation_steps=1"]
    same_run(run(tiny_recipe, "anchored-subnetwork-zero3", *settings, *layout, world_size=2), one)


def same_run(run_dir: Path, expected: Path) -> None:
    for key in ("loss", "gradient_norm"):
        assert steps_of(run_dir, key) == pytest.approx(steps_of(expected, key), rel=2e-5)
    assert steps_of(run_dir, KEY) == pytest.approx(steps_of(expected, KEY), rel=1e-4, abs=1e-7)
