"""Over which languages means are taken: what was gained must not hide what was lost."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from lape_ds.evaluation.comparing.comparison import _suite_means  # pyright: ignore[reportPrivateUsage]
from lape_ds.evaluation.comparing.differences import Paired
from lape_ds.evaluation.comparing.measures import Measure, ratio
from lape_ds.evaluation.results import TaskResult

TASKS = {"mlt": ["topic", "cloze"], "ka": ["topic"], "eng": ["topic", "cloze"], "deu": ["topic"]}
CHANCE = {"topic": 0.25, "cloze": 0.5}


def means_of(trained: set[str]) -> dict[str, dict[str, float]]:
    """Language, or group of them -> weight of each task's accuracy."""
    results = {
        f"{title}_{code}": TaskResult(
            f"{title}_{code}", code, 4, {}, "0", {}, title, "acc", "higher", CHANCE[title]
        )
        for code, titles in TASKS.items()
        for title in titles
    }
    one = Paired(Measure(ratio, is_accuracy=True), np.ones((4, 2)), np.ones((1, 4, 2)))
    found = _suite_means("own", results, dict.fromkeys(results, one), frozenset(trained))
    assert len({mean.name for mean in found}) == len(found)
    return {mean.language: dict(mean.weights) for mean in found}


@pytest.mark.parametrize(
    ("trained", "groups"),
    [
        (set(), {"all": ["mlt", "ka", "eng", "deu"]}),
        (set(TASKS), {"all": ["mlt", "ka", "eng", "deu"]}),
        ({"cym"}, {"all": ["mlt", "ka", "eng", "deu"]}),  # not measured
        ({"mlt", "ka"}, {"trained": ["mlt", "ka"], "others": ["eng", "deu"]}),
        ({"mlt"}, {"others": ["ka", "eng", "deu"]}),  # of one language its own mean tells
        ({"mlt", "ka", "eng"}, {"trained": ["mlt", "ka", "eng"]}),
    ],
)
def test_trained_and_others_have_means_of_their_own(trained: set[str], groups: dict[str, list[str]]) -> None:
    """Each language weighs alike whatever tasks it has, and each score counts by what it is above chance."""
    found = means_of(trained)
    assert set(found) == {"mlt", "eng", *groups}
    for name, codes in {"mlt": ["mlt"], "eng": ["eng"], **groups}.items():
        expected = {
            f"{title}_{code}": Fraction(1, len(codes) * len(TASKS[code])) / (1 - Fraction(CHANCE[title]))
            for code in codes
            for title in TASKS[code]
        }
        assert found[name] == pytest.approx({task: float(weight) for task, weight in expected.items()})
