"""From runs and results that were written by hand to the grids, the page and the numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lape_ds.errors import UserError
from lape_ds.evaluation.comparing.comparison import compare
from lape_ds.matrix.grids import Grid, Row, Value, judged
from lape_ds.matrix.heldout_grids import equal_level, heldout_grids, read_swept
from lape_ds.matrix.states import fail_cell, tuned_runs, write_tuned
from lape_ds.matrix.student import quantile, two_sided_p
from lape_ds.matrix.suite_grids import suite_grids
from lape_ds.matrix.table import make_table, markdown, show_table, value_text, write_table
from lape_ds.recipe import Matrix
from tests.matrix.matrices import CODES, hand_matrix, write_all_runs, write_bits, write_run


def by_id(grids: list[Grid]) -> dict[str, Grid]:
    return {grid.id: grid for grid in grids}


def row(grid: Grid, variant: str) -> Row:
    return next(row for row in grid.rows if row.variant == variant)


def values(row: Row) -> list[float]:
    return [cell.value for cell in row.cells.values() if cell is not None]


def test_tuned_gains_by_hand(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path)
    write_all_runs(matrix)
    grid = by_id(heldout_grids(read_swept(matrix.models[0])))["heldout-tuned-gain"]
    subnetwork = row(grid, "subnetwork")
    assert values(subnetwork) == pytest.approx([0.2, 0.4, 0.6])  # the harsh rates
    assert subnetwork.mean is not None
    assert subnetwork.mean.value == pytest.approx(0.4)
    # Standard deviation 0.2, of three.
    assert subnetwork.mean.half_width == pytest.approx(quantile(2) * 0.2 / math.sqrt(3))
    assert subnetwork.mean.p == pytest.approx(two_sided_p(0.4 / (0.2 / math.sqrt(3)), 2))
    random = row(grid, "random")
    assert values(random) == pytest.approx([0.21, 0.41, 0.61])  # means of two seeds
    assert random.cells["mlt_Latn"] is not None
    assert (random.cells["mlt_Latn"].num_seeds, random.cells["mlt_Latn"].spread) == (2, pytest.approx(0.01))
    against = {row.variant: row for row in grid.against}
    assert grid.reference == "subnetwork"
    assert list(against) == ["random", "full"]
    assert values(against["full"]) == pytest.approx([0.1, 0.1, 0.1])


def test_equal_forgetting_is_read_off_the_frontiers(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path)
    write_all_runs(matrix)
    swept = read_swept(matrix.models[0])
    assert equal_level(swept) == 0.05  # the largest round one between -0.01 and 0.07, which all have reached
    grids = by_id(heldout_grids(swept))
    assert values(row(grids["heldout-tuned-forgetting"], "full")) == pytest.approx([0.07, 0.07, 0.07])
    grid = grids["heldout-equal-gain"]
    assert (grid.at, grid.level) == ("equal forgetting", 0.05)
    # Three quarters of the way from 0.1, 0.2, 0.3 to twice that.
    assert values(row(grid, "subnetwork")) == pytest.approx([0.175, 0.35, 0.525])


def test_the_level_is_one_that_the_reference_has_reached_everywhere(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path)
    for number, language in enumerate(matrix.languages):
        for run in language.runs:
            harsh = run.learning_rate == max(other.learning_rate for other in language.runs_of(run.variant))
            # In one language the subnetwork never forgets more than 0.02; most methods reach 0.1 in most languages.
            most = 0.02 if number == 0 and run.variant == "subnetwork" else 0.1
            write_run(run, gain=0.1, forgetting=most if harsh else -0.01)
    grids = by_id(heldout_grids(read_swept(matrix.models[0])))
    assert grids["heldout-equal-gain"].level == 0.02
    assert row(grids["heldout-equal-gain"], "subnetwork").mean is not None


def test_a_model_that_was_measured_otherwise_than_the_base_is_left_out(tmp_path: Path) -> None:
    """As after an upgrade, until its turn comes to be measured again."""
    matrix = hand_matrix(tmp_path, more="eval: {}\n")
    write_results(matrix)
    path = matrix.languages[0].folder / "eval" / "full-seed-0" / "bits_mlt_Latn.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["settings"]["versions"] = {"transformers": "4"}
    path.write_text(json.dumps(content), encoding="utf-8")
    gain = by_id(suite_grids(matrix.models[0]))["suite-bits-gain"]
    assert row(gain, "full").cells["mlt_Latn"] is None
    assert None not in row(gain, "random").cells.values()


def test_a_language_that_is_missing_has_no_part_in_a_mean(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path)
    write_all_runs(matrix)
    for run in matrix.languages[1].runs_of("full"):
        (run.run_dir / "metrics.jsonl").unlink()
    fail_cell(matrix.languages[1], "full", stage="sweep", reason="CUDA | out of memory")
    table = make_table(matrix)
    full = row(by_id(table.models[0].grids)["heldout-tuned-gain"], "full")
    assert (full.cells["cym_Latn"], full.mean) == (None, None)
    assert table.notes[0].startswith("Provisional: 22 of 24 runs are finished; of 9 cells 1 failed")
    page = markdown(table)
    assert r"| hand | cym_Latn | full | sweep | CUDA \| out of memory |" in page
    assert "| full | +0.300 | – | +0.700 | – |" in page


def test_page_numbers_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrix = hand_matrix(tmp_path)
    write_all_runs(matrix)
    table = make_table(matrix)
    folder = write_table(table)
    show_table(table)
    assert "hand: means over 3 languages" in capsys.readouterr().out
    content = json.loads((folder / "table.json").read_text(encoding="utf-8"))
    (model,) = content["models"]
    assert model["language_names"] == {"mlt_Latn": "Maltese", "cym_Latn": "Welsh", "kat_Geor": "Georgian"}
    assert [(one["name"], one["seeds"]) for one in model["variants"]] == [
        ("subnetwork", [0]),
        ("random", [0, 1]),
        ("full", [0]),
    ]
    assert model["variants"][2]["tuned_rates"] == dict.fromkeys(CODES, 1e-4)
    gain = next(grid for grid in model["grids"] if grid["id"] == "heldout-tuned-gain")
    assert gain["rows"][2]["cells"]["kat_Geor"]["value"] == pytest.approx(0.7)
    assert gain["against"]["reference"] == "subnetwork"
    assert {cell["state"] for cell in content["cells"]} == {"finished"}
    page = (folder / "table.md").read_text(encoding="utf-8")
    # 0.5 ± 4.303 x 0.2 / sqrt(3)
    assert "| full | +0.300 | +0.500 | +0.700 | **+0.500 ±0.497** |" in page
    picture = (folder / model["frontier"]).read_text(encoding="utf-8")
    assert all(f">{name}<" in picture for name in ("Maltese", "Welsh", "Georgian", "random"))


def test_nothing_finished_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of this matrix is finished"):
        make_table(hand_matrix(tmp_path))


def test_holm_over_the_whole_grid() -> None:
    rows = [
        Row("a", {"x": Value(1.0, p=0.01), "y": Value(-1.0, p=0.02)}, Value(0.0, p=0.5)),
        Row("b", {"x": Value(1.0, p=0.001), "y": None}, None),
    ]
    first, second = judged(rows, "higher")
    # 0.001 x 4, 0.01 x 3, 0.02 x 2, 0.5 (Holm 1979).
    assert second.cells["x"] == Value(1.0, p=0.001, p_holm=0.004, verdict="better")
    own = [first.cells["x"], first.cells["y"]]
    assert [value.verdict for value in own if value is not None] == ["better", "worse"]
    assert [value.p_holm for value in own if value is not None] == pytest.approx([0.03, 0.04])
    assert first.mean == Value(0.0, p=0.5, p_holm=0.5, verdict="no difference shown")
    worse, _ = judged(rows, "lower")
    assert worse.cells["x"] is not None
    assert worse.cells["x"].verdict == "worse"
    assert value_text(worse.cells["x"]) == "+1.000*"


BITS = {
    "base": 0.0,
    "subnetwork-seed-0": -0.10,
    "full-seed-0": -0.30,
    "random-seed-0": -0.04,
    "random-seed-1": -0.12,
}


def write_results(matrix: Matrix) -> None:
    """Documents of the target and of English, harder and easier ones; each model moves them alike but for some noise."""
    write_all_runs(matrix)
    for number, language in enumerate(matrix.languages):
        rng = np.random.default_rng(number)
        own, english = rng.uniform(1, 3, size=40), rng.uniform(1, 2, size=30)
        for label, change in BITS.items():
            noise = 0.0 if label == "base" else rng.normal(0, 0.05, size=40)
            write_bits(language, label, language.code, list(own + change + noise))
            write_bits(language, label, "eng_Latn", list(english - change / 2 + rng.normal(0, 0.02, size=30)))
        runs = [
            run for variant in language.variants for run in tuned_runs(variant, language.runs_of(variant))
        ]
        write_tuned(language, dict.fromkeys(runs, "somehow"))


def test_suites_are_compared_as_compare_does(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path, more="eval: {}\n")
    write_results(matrix)
    grids = by_id(suite_grids(matrix.models[0]))
    assert list(grids) == ["suite-bits-gain", "suite-bits-forgetting"]
    gain, loss = grids["suite-bits-gain"], grids["suite-bits-forgetting"]
    assert (gain.unit, gain.better, gain.measured) == ("bits per byte", "higher", "suite mine")
    for language in matrix.languages:
        folders = {label: language.folder / "eval" / label for label in ("base", "full-seed-0")}
        for task in compare(folders).tasks:
            found = task.models["full-seed-0"].estimate
            cell = row(gain if task.language == language.code else loss, "full").cells[language.code]
            assert cell is not None
            sign = -1 if task.language == language.code else 1
            assert (sign * cell.value, cell.half_width, cell.p) == pytest.approx(
                (found.difference, found.half_width, found.p)
            )
    mean = row(gain, "full").mean
    assert mean is not None
    assert mean.value == pytest.approx(sum(values(row(gain, "full"))) / 3)
    # Independent texts: the standard errors add up in squares, and so, nearly, do the half-widths.
    widths = [cell.half_width for cell in row(gain, "full").cells.values() if cell is not None]
    assert mean.half_width == pytest.approx(math.sqrt(sum(w * w for w in widths if w)) / 3, rel=0.1)
    assert mean.verdict == "better"
    assert row(loss, "full").mean is not None
    assert row(loss, "full").mean.verdict == "worse"  # type: ignore[union-attr]


def test_a_task_that_failed_for_one_method_is_compared_among_the_others(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path, more="eval: {}\n")
    write_results(matrix)
    whole = by_id(suite_grids(matrix.models[0]))["suite-bits-forgetting"]
    (matrix.languages[0].folder / "eval" / "full-seed-0" / "bits_eng_Latn.json").unlink()
    grids = by_id(suite_grids(matrix.models[0]))
    loss = grids["suite-bits-forgetting"]
    assert row(loss, "full").cells["mlt_Latn"] is None
    assert row(loss, "full").mean is None
    for variant in ("subnetwork", "random"):
        assert values(row(loss, variant)) == pytest.approx(values(row(whole, variant)))
    assert None not in row(grids["suite-bits-gain"], "full").cells.values()


def test_seeds_count_as_their_mean_document_by_document(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path, more="eval: {}\n")
    write_results(matrix)
    language = matrix.languages[0]
    cell = row(by_id(suite_grids(matrix.models[0]))["suite-bits-gain"], "random").cells["mlt_Latn"]
    paths = [language.folder / "eval" / f"random-seed-{seed}/samples/bits_mlt_Latn.jsonl" for seed in (0, 1)]
    bits = [
        [-json.loads(line)["bits_per_byte"][0] / 8 / math.log(2) for line in path.read_text().splitlines()]
        for path in paths
    ]
    mean = [(first + second) / 2 for first, second in zip(*bits, strict=True)]
    write_bits(language, "mean", "mlt_Latn", mean)
    folders = {label: language.folder / "eval" / label for label in ("base", "mean")}
    (task,) = compare(folders).tasks
    found = task.models["mean"].estimate
    assert cell is not None
    assert cell.num_seeds == 2
    assert (-cell.value, cell.half_width, cell.p) == pytest.approx(
        (found.difference, found.half_width, found.p)
    )


def test_methods_are_compared_with_the_first(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path, more="eval: {}\n")
    write_results(matrix)
    gain = by_id(suite_grids(matrix.models[0]))["suite-bits-gain"]
    assert gain.reference == "subnetwork"
    full = next(row for row in gain.against if row.variant == "full")
    for language in matrix.languages:
        folders = {label: language.folder / "eval" / label for label in ("subnetwork-seed-0", "full-seed-0")}
        found = next(task for task in compare(folders).tasks if task.language == language.code)
        one, cell = found.models["full-seed-0"].estimate, full.cells[language.code]
        assert cell is not None
        assert (-cell.value, cell.half_width) == pytest.approx((one.difference, one.half_width))


def test_a_frontier_has_no_value_at_a_level_that_it_never_reached(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path)
    write_all_runs(matrix)
    for language in matrix.languages:
        for run in language.runs_of("full"):
            write_run(run, gain=0.1, forgetting=0.2 if run.learning_rate < 5e-5 else 0.3)
    grid = by_id(heldout_grids(read_swept(matrix.models[0])))["heldout-equal-gain"]
    assert grid.level == 0.05
    assert set(row(grid, "full").cells.values()) == {None}
