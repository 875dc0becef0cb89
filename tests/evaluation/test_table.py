"""What stands in the table, cell by cell."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lape_ds.errors import UserError
from lape_ds.evaluation.results import Score, TaskResult
from lape_ds.evaluation.suites import load_suite, plan
from lape_ds.evaluation.table import side_by_side


def rendered(values: dict[str, dict[str, float]], *, measured: str | None = None) -> list[str]:
    """Rows of cells, `|` between them; `values` are label -> task -> value of the metric shown, or `measured`."""
    suite = load_suite("quickstart")
    kept = {title: suite.tasks[title] for title in ("bits_per_byte", "topic")}
    planned = plan(suite.model_copy(update={"tasks": kept}), ["mlt"])
    results = {
        label: {
            one.name: TaskResult(
                task=one.name,
                language=one.language,
                num_documents=128,
                scores={measured or one.spec.metric: Score(by_title[one.title], 0.01)},
                requests_sha256="",
                settings={},
                title=one.title,
                metric=one.spec.metric,
                direction=one.spec.direction,
                random_baseline=one.spec.random_baseline,
            )
            for one in planned
        }
        for label, by_title in values.items()
    }
    out = io.StringIO()
    Console(file=out, width=90).print(side_by_side(planned, results, title="quickstart suite"))
    lines = [line for line in out.getvalue().splitlines() if line.startswith(("│", "┃"))]
    return ["|".join(map(str.strip, line.strip("│┃").replace("┃", "│").split("│"))) for line in lines]


def test_models_stand_side_by_side_with_direction_chance_and_difference():
    rows = rendered(
        {
            "base": {"bits_per_byte": 1.5, "topic": 0.5},
            "subnetwork": {"bits_per_byte": 1.25, "topic": 0.75},
            "random": {"bits_per_byte": 1.5, "topic": 0.375},
        }
    )
    assert rows == [
        "task|language|chance|base|subnetwork|random",
        "bits_per_byte ↓|mlt_Latn|–|1.500 ±0.010|1.250 ±0.010|1.500 ±0.010",
        "n 128||||(-0.250)|(+0.000)",
        "topic ↑|mlt_Latn|0.250|0.500 ±0.010|0.750 ±0.010|0.375 ±0.010",
        "acc, n 128||||(+0.250)|(-0.125)",
    ]


def test_a_metric_that_another_suites_measuring_lacks_is_one_line():
    with pytest.raises(
        UserError, match=r"^topic in suite quickstart: .* no finite acc but bits_per_byte: name one"
    ):
        rendered({"base": {"bits_per_byte": 1.5, "topic": 0.5}}, measured="bits_per_byte")
