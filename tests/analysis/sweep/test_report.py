"""From run folders to tables, page, numbers and picture, on runs written by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lape_ds.analysis.sweep.frontier import MethodFrontier, Point, RatePoint
from lape_ds.analysis.sweep.picture import draw_frontier
from lape_ds.analysis.sweep.report import report_frontier
from lape_ds.analysis.sweep.results import SweepResults, read_sweep
from lape_ds.analysis.sweep.tables import as_json, level_tables, markdown
from lape_ds.errors import UserError
from lape_ds.recipe import Recipe, SweepRun, load_recipe, sweep_runs

RECIPE = """
name: hand
output_dir: {folder}/out
languages: {{target: mt, identify: [mt, en, ka]}}
model: {{path: nowhere}}
corpus: {{source: {{kind: cldr}}}}
sweep:
  variants:
    - {{method: full, learning_rates: [1e-5, 1e-4]}}
    - {{name: full+replay, method: full, learning_rates: [1e-5, 1e-4], set: {{train.replay.share: 0.5}}}}
  seeds: [0, 1]
"""
BEFORE = {"mlt_Latn": 2.0, "eng_Latn": 1.0, "kat_Geor": 1.5}
# Per variant and rate, of seeds 0 and 1: gain on Maltese, change of English, change of Georgian.
CHANGES = {
    ("full", 1e-5): [(0.10, 0.00, 0.04), (0.14, 0.02, 0.06)],  # mean: gain 0.12, change 0.03
    ("full", 1e-4): [(0.40, 0.20, 0.30), (0.44, 0.22, 0.28)],  # 0.42, 0.25
    ("full+replay", 1e-5): [(0.08, -0.04, 0.0), (0.12, -0.02, -0.02)],  # 0.10, -0.02
    ("full+replay", 1e-4): [(0.50, 0.16, 0.20), (0.50, 0.18, 0.22)],  # 0.50, 0.19
}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "hand.yaml"
    path.write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")
    return load_recipe(path)


def write_run(run: SweepRun, lines: list[dict[str, object]], *, model: str = "base") -> None:
    run.run_dir.mkdir(parents=True)
    facts = {
        "total_steps": 9,
        "model_fingerprint": model,
        "trained_parameters": 7 if run.variant == "full" else 8,
        "parameters": 1234,
    }
    (run.run_dir / "run.json").write_text(json.dumps(facts))
    (run.run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def measured(run: SweepRun) -> list[dict[str, object]]:
    gain, english, georgian = CHANGES[run.variant, run.learning_rate][run.seed]
    after = {"mlt_Latn": 2.0 - gain, "eng_Latn": 1.0 + english, "kat_Geor": 1.5 + georgian}
    return [
        {"step": 0, "heldout_bits_per_byte": BEFORE},
        {"step": 5, "heldout_bits_per_byte": dict.fromkeys(BEFORE, 9.0)},  # on the way: not the end
        {"step": 9, "heldout_bits_per_byte": after},
    ]


def write_all(recipe: Recipe) -> None:
    for run in sweep_runs(recipe):
        write_run(run, measured(run))


def test_tables_by_hand(recipe: Recipe) -> None:
    write_all(recipe)
    results = read_sweep(recipe)
    assert results.others == ("eng_Latn", "kat_Geor")
    assert results.trained_parameters == {"full": 7, "full+replay": 8}
    assert results.notes == ()
    gain, forgetting = level_tables(results)
    assert gain.levels == [0.05, 0.1, 0.15]  # both were measured from 0.03 to 0.19
    rows = dict(gain.rows)
    # Between (0.03, 0.12) and (0.25, 0.42); the seeds between (0.02, 0.10) and (0.25, 0.40), (0.04, 0.14) and (0.25, 0.44).
    assert rows["full"][0].mean == pytest.approx(0.12 + 0.30 * 0.02 / 0.22)
    seeds = [0.10 + 0.30 * 0.03 / 0.23, 0.14 + 0.30 * 0.01 / 0.21]
    assert list(rows["full"][0].by_seed.values()) == pytest.approx(seeds)
    assert rows["full"][0].spread == pytest.approx((seeds[1] - seeds[0]) / 2)
    assert rows["full+replay"][0].mean == pytest.approx(0.10 + 0.40 * 0.07 / 0.21)
    assert gain.best(0) == rows["full+replay"][0].mean
    assert forgetting.best(0) == min(row[0].mean for _, row in forgetting.rows if row[0].mean is not None)
    assert gain.cell(rows["full"][0], between=" ") == "0.147 ±0.008"
    assert forgetting.cell(dict(forgetting.rows)["full"][-1], between=" ").startswith("+0.")


def test_page_holds_every_point(recipe: Recipe) -> None:
    write_all(recipe)
    results = read_sweep(recipe)
    tables = level_tables(results)
    page = markdown(results, tables)
    assert "# Gain and forgetting: Maltese" in page
    assert "| full | 7 | 1e-05 | 0.120 ±0.020 | +0.030 ±0.010 | ● | 0, 1 |" in page
    assert "| full+replay | 8 | 0.0001 | 0.500 ±0.000 | +0.190 ±0.010 | ● | 0, 1 |" in page
    assert "**" in page.split("## Every point")[0]
    for line in page.splitlines():
        assert line.count("|") in (0, 4, 5, 8), line  # each table has as many cells in every row
    content = json.loads(json.dumps(as_json(results, tables), allow_nan=False))
    point = content["variants"][0]["rates"][0]
    assert point["mean"]["gain"] == pytest.approx(0.12)
    assert point["by_seed"]["1"]["forgetting"] == pytest.approx(0.04)


def test_unfinished_and_diverged_runs_are_told(recipe: Recipe) -> None:
    runs = sweep_runs(recipe)
    for run in runs:
        if (run.variant, run.learning_rate, run.seed) == ("full", 1e-4, 1):
            write_run(run, [*measured(run)[:2], {"step": 6, "diverged": "step 7: loss is nan"}])
        elif run.variant == "full":
            write_run(run, measured(run))
        elif (run.learning_rate, run.seed) == (1e-5, 0):
            write_run(run, measured(run)[:2])  # still on its way
    results = read_sweep(recipe)
    assert [method.name for method in results.methods] == ["full"]
    assert results.methods[0].mean is not None
    assert len(results.methods[0].mean.points) == 1
    assert results.notes[0] == "Provisional: 4 of 8 runs are finished."
    assert "full lr 0.0001 seed 1" in results.notes[1]
    page = markdown(results, level_tables(results))
    assert "| full | 7 | 0.0001 | – | – |  | 0; diverged: 1 |" in page
    report_frontier(recipe)


def test_a_sweep_of_diverged_runs_alone_is_told_too(
    recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in sweep_runs(recipe):
        write_run(run, [*measured(run)[:1], {"step": 1, "diverged": "step 2: loss is nan"}])
    report_frontier(recipe)
    assert "Nothing to compare" in capsys.readouterr().out


def test_other_text_is_told_and_other_models_are_refused(recipe: Recipe) -> None:
    runs = sweep_runs(recipe)
    for run in runs[:-1]:
        write_run(run, measured(run))
    first, *rest = measured(runs[-1])
    write_run(runs[-1], [first | {"heldout_bits_per_byte": BEFORE | {"eng_Latn": 1.01}}, *rest])
    assert "held-out text of eng_Latn is not the same" in read_sweep(recipe).notes[0]
    (runs[-1].run_dir / "run.json").write_text(
        (runs[-1].run_dir / "run.json").read_text().replace('"base"', '"another"')
    )
    with pytest.raises(UserError, match="2 different base models"):
        read_sweep(recipe)


def test_nothing_finished_is_refused(recipe: Recipe) -> None:
    with pytest.raises(UserError, match="no run of this sweep is finished"):
        report_frontier(recipe)


def test_picture_names_every_variant(recipe: Recipe) -> None:
    write_all(recipe)
    report_frontier(recipe)
    picture = (recipe.sweep_dir / "frontier.svg").read_text(encoding="utf-8")
    report_frontier(recipe)
    assert (recipe.sweep_dir / "frontier.svg").read_text(encoding="utf-8") == picture
    assert ">full</text>" in picture
    assert ">full+replay</text>" in picture
    assert sorted(path.name for path in recipe.sweep_dir.iterdir()) == [
        f"frontier.{ending}" for ending in ("json", "md", "png", "svg")
    ]


def test_three_equal_seeds_have_no_negative_error_bar(tmp_path: Path) -> None:
    """The mean of three equal numbers may be another number in floating point."""
    values = [number / 100 for number in range(1, 60)]
    rates = [RatePoint(value, dict.fromkeys(range(3), Point(value, value))) for value in values]
    assert any(rate.mean is not None and rate.mean.gain != rate.learning_rate for rate in rates)
    results = SweepResults(
        (MethodFrontier("full", rates),), ("mlt_Latn",), ("eng_Latn",), {"full": 1}, 1, "base", 1, ()
    )
    draw_frontier(results, tmp_path / "frontier.png", format="png")


def test_the_report_needs_no_torch() -> None:
    code = "import sys, lape_ds.analysis.sweep.report, lape_ds.training.sweep_launch; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
