"""Which stages a matrix runs, in which order; with stages that write what the real ones would, in no time."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lape_ds.analysis.sweep import report
from lape_ds.distributed.run_lock import take_lock
from lape_ds.distributed.stopping import STOPPED
from lape_ds.errors import UserError
from lape_ds.matrix import running
from lape_ds.matrix.running import StageFailed, reason_in, run_matrix
from lape_ds.matrix.states import read_cells
from lape_ds.matrix.table import make_table
from lape_ds.recipe import Matrix, Recipe, load_matrix, sweep_runs
from lape_ds.training import export, sweep_launch
from lape_ds.training.run_folder import read_finished
from lape_ds.training.tuned import drop_untuned
from tests.matrix.matrices import matrix_file, write_run


@dataclass
class Stages:
    """What was asked of the stages, and what they are to do.

    Attributes:
        calls: In order, e.g. `identify`, `sweep mlt_Latn subnetwork,random`, `eval mlt_Latn full-seed-0`.
        failing: Variants whose training fails, and stages that do.
        broken: Models of which a task fails.
        stopping: The sweep is stopped.
    """

    calls: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    last_step: int = 9  # of the newest checkpoint that is whole
    broken: set[str] = field(default_factory=set)
    stopping: bool = False
    frontiers: list[str] = field(default_factory=list)  # drawn, which takes a second each

    def run_stage(self, words: Sequence[str], *, log: Path) -> None:
        stage, recipe, *models = words
        where = Path(recipe).parent
        self.calls.append(
            " ".join([stage, *([where.name] if models else []), *(Path(model).name for model in models)])
        )
        assert Path(recipe).is_file()
        if stage in self.failing:
            raise StageFailed(f"no {stage} today")
        if stage == "identify":
            neurons = where / "identify" / "neurons.safetensors"
            neurons.parent.mkdir(exist_ok=True)
            neurons.touch()
        assert all((Path(model) / "config.json").is_file() for model in models)
        for label in self.broken if models else ():
            errors = where / "eval" / label / "errors"
            errors.mkdir(parents=True, exist_ok=True)
            (errors / "hard_task.txt").touch()
        if models and self.broken:
            raise StageFailed("1 of 2 tasks failed")

    def launch_sweep(self, recipe: Recipe, path: str, overrides: Sequence[str]) -> None:
        runs = sweep_runs(recipe)
        variants = list(dict.fromkeys(run.variant for run in runs))
        self.calls.append(f"sweep {recipe.languages.target} {','.join(variants)}")
        for run in runs:
            if self.stopping:
                raise SystemExit(STOPPED)
            if run.variant in self.failing:
                raise UserError(f"{run.variant} does not fit")
            if read_finished(run.run_dir) is None:
                write_run(run, gain=run.learning_rate * 100, forgetting=0.1 + run.learning_rate)
        for variant in variants:
            drop_untuned([run for run in runs if run.variant == variant])

    def export_model(self, run_dir: Path, *, checkpoint: str, folder: Path) -> SimpleNamespace:
        assert checkpoint == "last"
        assert (run_dir / "checkpoints").is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").touch()
        return SimpleNamespace(step=self.last_step, total_steps=9)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    found = Stages()
    monkeypatch.setattr(running, "run_stage", found.run_stage)
    monkeypatch.setattr(sweep_launch, "launch_sweep", found.launch_sweep)
    monkeypatch.setattr(export, "export_model", found.export_model)
    monkeypatch.setattr(
        report, "write_frontier", lambda recipe: found.frontiers.append(recipe.languages.target)
    )
    return found


ALL = "subnetwork,random,full"
MODELS = "subnetwork-seed-0 random-seed-0 random-seed-1 full-seed-0"
LANGUAGE = [f"sweep {{}} {ALL}", f"eval {{}} {MODELS}"]


def matrix_of(folder: Path) -> Matrix:
    return load_matrix(matrix_file(folder, more="eval: {}\n"))


def states(matrix: Matrix) -> list[Any]:
    return [cell.state for cell in read_cells(matrix)]


def of(code: str) -> list[str]:
    return [call.format(code) for call in LANGUAGE]


def test_from_end_to_end_and_never_again(tmp_path: Path, stages: Stages) -> None:
    matrix = matrix_of(tmp_path)
    run_matrix(matrix)
    assert stages.calls == ["identify", *of("mlt_Latn"), *of("cym_Latn"), *of("kat_Geor")]
    assert set(states(matrix)) == {"finished"}
    run_matrix(matrix, retry=True)
    assert len(stages.calls) == 7
    language = matrix.languages[0]
    assert stages.frontiers == ["mlt_Latn", "cym_Latn", "kat_Geor"]
    # Of each variant, the harshest rate gained most; its checkpoints are all that is left beside the results.
    left = {run.label for run in language.runs if (run.run_dir / "checkpoints").exists()}
    assert left == {
        "subnetwork lr 0.001 seed 0",
        "random lr 0.001 seed 0",
        "random lr 0.001 seed 1",
        "full lr 0.0001 seed 0",
    }
    assert not (language.folder / "tuned").exists()


def test_a_method_that_fails_does_not_stop_the_others(tmp_path: Path, stages: Stages) -> None:
    matrix = matrix_of(tmp_path)
    stages.failing = {"random"}
    run_matrix(matrix)
    assert stages.calls[1:5] == [
        f"sweep mlt_Latn {ALL}",  # fails behind the subnetwork's first seed
        "sweep mlt_Latn random",
        "sweep mlt_Latn full",
        "eval mlt_Latn subnetwork-seed-0 full-seed-0",
    ]
    assert states(matrix) == ["finished", "failed", "finished"] * 3
    (failure,) = {cell.failure.reason for cell in read_cells(matrix) if cell.failure is not None}
    assert failure == "random does not fit"
    stages.failing, num_calls = set(), len(stages.calls)
    run_matrix(matrix)
    assert len(stages.calls) == num_calls, "what failed is tried again only when asked to"
    run_matrix(matrix, retry=True)
    assert stages.calls[num_calls : num_calls + 3] == [
        "identify",
        "sweep mlt_Latn random",
        "eval mlt_Latn random-seed-0 random-seed-1",
    ]
    assert set(states(matrix)) == {"finished"}


def test_a_model_or_a_suite_that_fails_is_written_down(tmp_path: Path, stages: Stages) -> None:
    matrix = matrix_of(tmp_path)
    stages.failing = {"identify"}
    run_matrix(matrix)
    assert stages.calls == ["identify"]
    assert set(states(matrix)) == {"failed"}
    stages.failing = {"eval"}
    run_matrix(matrix, retry=True)
    failures = {
        (cell.failure.stage, cell.failure.reason) for cell in read_cells(matrix) if cell.failure is not None
    }
    assert failures == {("eval", "no eval today")}
    stages.failing = set()
    before = len(stages.calls)
    run_matrix(matrix, retry=True)
    sweeps = [call for call in stages.calls[before:] if call.startswith("sweep")]
    assert len(sweeps) == 3  # which find every run finished
    assert set(states(matrix)) == {"finished"}


def test_a_model_that_a_task_cannot_measure_does_not_fail_the_others(tmp_path: Path, stages: Stages) -> None:
    matrix = matrix_of(tmp_path)
    stages.broken = {"full-seed-0"}
    run_matrix(matrix)
    assert states(matrix) == ["finished", "finished", "failed"] * 3
    reason = next(cell.failure.reason for cell in read_cells(matrix) if cell.failure is not None)
    assert reason == f"hard_task failed (why: {matrix.languages[0].folder}/eval/full-seed-0/errors)"
    assert not (matrix.languages[0].folder / "tuned").exists()
    stages.broken, num_calls = set(), len(stages.calls)
    run_matrix(matrix, retry=True)
    assert stages.calls[num_calls + 2] == "eval mlt_Latn full-seed-0"
    assert set(states(matrix)) == {"finished"}
    # Of the base, it is everybody's.
    for language in matrix.languages:
        (language.folder / "tuned.json").unlink()
    stages.broken = {"full-seed-0", "base"}
    run_matrix(matrix)
    assert set(states(matrix)) == {"failed"}


def test_seeds_that_are_added_may_need_checkpoints_that_are_gone(tmp_path: Path, stages: Stages) -> None:
    matrix = matrix_of(tmp_path)
    run_matrix(matrix)
    language = matrix.languages[0]
    gentle = next(run for run in language.runs_of("full") if run.learning_rate == 1e-5)
    write_run(gentle, gain=9.0, forgetting=0.0)  # what a mean over more seeds can do
    shutil.rmtree(gentle.run_dir / "checkpoints")
    run_matrix(matrix)
    assert states(matrix)[:3] == ["finished", "finished", "failed"]
    reason = next(cell.failure.reason for cell in read_cells(matrix) if cell.failure is not None)
    assert reason.startswith(f"{gentle.run_dir} has no checkpoints any more")


def test_one_process_to_a_language(tmp_path: Path, stages: Stages) -> None:
    matrix = matrix_of(tmp_path)
    with take_lock(matrix.languages[0].folder, instead="come back"):
        assert run_matrix(matrix) == ["hand, mlt_Latn"]
        assert stages.calls == ["identify", *of("cym_Latn"), *of("kat_Geor")]
        with pytest.raises(UserError, match=r"another process is at work in .*mlt_Latn .*--number"):
            run_matrix(matrix, number=0)
    assert run_matrix(matrix) == []
    assert set(states(matrix)) == {"finished"}


def test_runs_of_other_settings_are_not_taken_for_the_matrix_s(tmp_path: Path, stages: Stages) -> None:
    matrix = matrix_of(tmp_path)
    run_matrix(matrix)
    written = matrix.languages[0].recipe_file.read_text(encoding="utf-8")
    other = load_matrix(matrix_file(tmp_path, more="eval: {}\nset: {train.max_steps: 7}\n"))
    for work in (run_matrix, make_table):
        with pytest.raises(UserError, match=r"holds output of another recipe: train\.max_steps is 7 now"):
            work(other)
    assert matrix.languages[0].recipe_file.read_text(encoding="utf-8") == written


def test_only_the_last_step_is_exported(tmp_path: Path, stages: Stages) -> None:
    """After damage to the last checkpoint the one before it would be measured as the run's end."""
    matrix = matrix_of(tmp_path)
    stages.last_step = 6
    run_matrix(matrix)
    reasons = {cell.failure.reason for cell in read_cells(matrix) if cell.failure is not None}
    assert all("no whole checkpoint after its last step, 9, but after 6" in reason for reason in reasons)
    assert set(states(matrix)) == {"failed"}


def test_a_signal_ends_all_and_the_same_command_goes_on(tmp_path: Path, stages: Stages) -> None:
    matrix = matrix_of(tmp_path)
    stages.stopping = True
    with pytest.raises(SystemExit) as ended:
        run_matrix(matrix)
    assert ended.value.code == STOPPED
    assert set(states(matrix)) == {"waiting"}
    stages.stopping = False
    run_matrix(matrix)
    assert set(states(matrix)) == {"finished"}


def test_the_task_of_an_array_runs_its_own_language(tmp_path: Path, stages: Stages) -> None:
    matrix = matrix_of(tmp_path)
    with pytest.raises(UserError, match=r"first run `lape-ds identify .*/out/hand/recipe.yaml`"):
        run_matrix(matrix, number=1)
    with pytest.raises(UserError, match="--array=0-2"):
        run_matrix(matrix, number=3)
    stages.run_stage(["identify", str(matrix.models[0].recipe_file)], log=tmp_path / "log")
    run_matrix(matrix, number=1)
    assert stages.calls[1:] == of("cym_Latn")
    assert states(matrix) == ["waiting"] * 3 + ["finished"] * 3 + ["waiting"] * 3


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["error: first", "x", "error: the file is not there", "later"], "the file is not there"),
        (
            ["Traceback", "torch.OutOfMemoryError: CUDA", "ranks ended"],
            "torch.OutOfMemoryError: CUDA",
        ),
        (["[rank0]: Traceback", "[rank0]: RuntimeError: out of memory"], "RuntimeError: out of memory"),
        (["Killed"], "ended with exit code -9"),
    ],
)
def test_why_a_stage_ended(lines: list[str], expected: str) -> None:
    assert reason_in(lines, code=-9) == expected
