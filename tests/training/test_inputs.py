"""How often each of several trained languages comes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from lape_ds.recipe import TrainSection
from lape_ds.training.inputs import _sampling_weight  # pyright: ignore[reportPrivateUsage]

TOKENS = {"mlt_Latn": 1_000, "cym_Latn": 16_000, "eng_Latn": 81_000}


def shares(**train: Any) -> list[float]:
    section = TrainSection.model_validate(train)
    texts = {
        code: cast("Any", SimpleNamespace(train=SimpleNamespace(num_tokens=n))) for code, n in TOKENS.items()
    }
    weights = [_sampling_weight(section, code, text) for code, text in texts.items()]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [1 / 98, 16 / 98, 81 / 98]),  # as much as there is
        (2.0, [1 / 14, 4 / 14, 9 / 14]),  # square roots
        (4.0, [1 / 6, 2 / 6, 3 / 6]),
        (1e9, [1 / 3, 1 / 3, 1 / 3]),  # alike
    ],
)
def test_shares_by_temperature(temperature: float, expected: list[float]) -> None:
    """p proportional to size^(1/T), arXiv 1907.05019, worked out by hand."""
    assert shares(temperature=temperature) == pytest.approx(expected)


def test_without_a_temperature_weights_say() -> None:
    assert shares() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert shares(weights={"mlt_Latn": 2.0}) == pytest.approx([1 / 2, 1 / 4, 1 / 4])
