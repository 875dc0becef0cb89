"""How far cells are, read from folders that were written by hand; and what of it people are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from lape_ds.errors import UserError
from lape_ds.matrix.measuring import measurement_of
from lape_ds.matrix.states import (
    Cell,
    fail_cell,
    forget_failures,
    model_failure_file,
    read_cells,
    read_tuned,
    tuned_runs,
    write_failure,
    write_tuned,
)
from lape_ds.matrix.status import failure_lines, seconds_left, summary_lines
from lape_ds.recipe import Matrix, load_matrix, load_recipe
from tests.matrix.matrices import hand_matrix, matrix_file, write_diverged, write_lines, write_run


def states(matrix: Matrix, code: str = "mlt_Latn") -> dict[str, str]:
    return {cell.variant: cell.state for cell in read_cells(matrix) if cell.language == code}


def test_from_waiting_to_finished(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path)
    assert states(matrix) == {"subnetwork": "waiting", "random": "waiting", "full": "waiting"}
    gentle, harsh = matrix.languages[0].runs_of("subnetwork")
    write_lines(gentle, [{"step": 1, "loss": 1.0, "seconds": 4.0}])
    assert states(matrix)["subnetwork"] == "begun"
    write_run(gentle, gain=0.1, forgetting=0.0)
    write_diverged(harsh)
    cells = {cell.variant: cell for cell in read_cells(matrix) if cell.language == "mlt_Latn"}
    assert cells["subnetwork"] == Cell("hand", "mlt_Latn", "subnetwork", "finished", None, 2, 2, 2.5)
    assert states(matrix, "cym_Latn")["subnetwork"] == "waiting"


def test_with_a_suite_it_is_finished_when_that_is_measured(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path, more="eval: {}\n")
    language = matrix.languages[0]
    for run in language.runs_of("random"):
        write_run(run, gain=run.learning_rate, forgetting=0.0)
    assert states(matrix)["random"] == "begun"
    own = tuned_runs("random", language.runs_of("random"))
    assert [(run.label, run.learning_rate) for run in own] == [
        ("random-seed-0", 1e-3),
        ("random-seed-1", 1e-3),
    ]
    write_tuned(language, dict.fromkeys(own))  # a task of the suite has failed
    assert states(matrix)["random"] == "begun"
    how = measurement_of(matrix, matrix.models[0])
    write_tuned(language, dict.fromkeys(own, how))
    assert states(matrix)["random"] == "finished"
    # Of another variant, nothing is forgotten; with another tuned rate it must be measured again.
    write_tuned(language, dict.fromkeys(tuned_runs("full", []), how))
    assert read_tuned(language) == dict.fromkeys(own, how)
    for run in language.runs_of("random"):
        write_run(run, gain=1e-5 / run.learning_rate, forgetting=0.0)
    assert states(matrix)["random"] == "begun"


def test_what_is_measured_another_way_is_measured_again(tmp_path: Path) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text("name: mine\ninclude: base.yaml\n", encoding="utf-8")
    base = tmp_path / "base.yaml"
    base.write_text("name: base\ntasks: {heldout: {task: heldout_bits_per_byte}}\n", encoding="utf-8")
    eval_section = f"eval: {{{{suite: {suite}, limit: {{}}}}}}\n"

    def loaded(limit: int) -> Matrix:
        return hand_matrix(tmp_path, more=eval_section.format(limit))

    matrix = loaded(10)
    language = matrix.languages[0]
    for run in language.runs_of("full"):
        write_run(run, gain=run.learning_rate, forgetting=0.0)
    own = tuned_runs("full", language.runs_of("full"))
    write_tuned(language, dict.fromkeys(own, measurement_of(matrix, matrix.models[0])))
    assert states(matrix)["full"] == "finished"
    assert states(loaded(20))["full"] == "begun"
    base.write_text(base.read_text(encoding="utf-8").replace("heldout:", "bits:"), encoding="utf-8")
    assert states(matrix)["full"] == "begun"


def test_a_recipe_is_no_matrix_and_a_matrix_no_recipe(tmp_path: Path) -> None:
    matrix = matrix_file(tmp_path)
    with pytest.raises(
        UserError, match=r"matrix\.yaml is a matrix file, of several recipes: `lape-ds matrix run"
    ):
        load_recipe(matrix)
    with pytest.raises(UserError, match=r"hand\.yaml is a recipe; a matrix file names several"):
        load_matrix(tmp_path / "hand.yaml")


def test_diverged_at_every_rate_is_an_end(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path, more="eval: {}\n")
    for run in matrix.languages[0].runs_of("full"):
        write_diverged(run)
    assert states(matrix)["full"] == "finished"


def test_reasons_are_kept_told_once_and_forgotten(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path)
    first, second, _ = matrix.languages
    fail_cell(first, "full", stage="sweep", reason="out of\nmemory")
    fail_cell(first, "random", stage="sweep", reason="out of\nmemory")
    fail_cell(second, "full", stage="eval", reason="no task")
    assert states(matrix) == {"subnetwork": "waiting", "random": "failed", "full": "failed"}
    cells = read_cells(matrix)
    assert failure_lines(cells) == [
        "failed: hand, mlt_Latn, random, full: sweep: out of memory",
        "failed: hand, cym_Latn, full: eval: no task",
    ]
    assert summary_lines(matrix, cells)[0] == "9 cells: 3 failed, 6 waiting"
    for run in first.runs_of("full"):  # by hand, meanwhile
        write_run(run, gain=0.1, forgetting=0.0)
    assert states(matrix)["full"] == "finished"
    write_failure(model_failure_file(matrix.models[0]), stage="identify", reason="no text")
    assert states(matrix, "kat_Geor") == {"subnetwork": "failed", "random": "failed", "full": "failed"}
    for model in matrix.models:
        forget_failures(model, model.languages)
    assert not any(cell.state == "failed" for cell in read_cells(matrix))


def test_time_left_is_what_others_of_the_method_took(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path)
    assert seconds_left(read_cells(matrix)) is None
    for run in matrix.languages[0].runs_of("subnetwork"):
        write_run(run, gain=0.1, forgetting=0.0, seconds=9.5)  # 10 with the measuring
    for run in matrix.languages[0].runs_of("full"):
        write_run(run, gain=0.1, forgetting=0.0, seconds=29.5)
    # 4 runs of the subnetwork, 4 of full, 12 of random, of which none is known: the mean of the others.
    assert seconds_left(read_cells(matrix)) == 4 * 10 + 4 * 30 + 12 * 20
    fail_cell(matrix.languages[2], "random", stage="sweep", reason="?")
    assert seconds_left(read_cells(matrix)) == 4 * 10 + 4 * 30 + 8 * 20
