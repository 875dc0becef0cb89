"""Learning rates at the points that define a schedule."""

from __future__ import annotations

import pytest

from lape_ds.recipe import OptimizerSection, ScheduleSection
from lape_ds.training.schedule import learning_rate

OPTIMIZER = OptimizerSection(learning_rate=1.0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"name": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"name": "constant", "warmup_steps": 3}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"name": "linear"}, [1, 0.8, 0.6, 0.4, 0.2, 0]),
        ({"name": "linear", "final_ratio": 0.5}, [1, 0.9, 0.8, 0.7, 0.6, 0.5]),
        ({"name": "linear", "warmup_steps": 1}, [0.5, 1, 0.75, 0.5, 0.25, 0]),
        ({"name": "cosine", "warmup_steps": 1}, [0.5, 1, 0.8535533905932737, 0.5, 0.1464466094067262, 0]),
    ],
    ids=str,
)
def test_six_steps(schedule: dict[str, object], expected: list[float]) -> None:
    section = ScheduleSection.model_validate(schedule)
    got = [learning_rate(step, 6, OPTIMIZER, section) for step in range(6)]
    assert got == pytest.approx(expected, abs=1e-12)
