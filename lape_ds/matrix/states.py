"""How far each cell of a matrix is, read from the folders alone: a cell is a model, a language and a method.

First of the room: running, status and table ask here. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from lape_ds.matrix.measuring import measurement_of
from lape_ds.recipe import Matrix, MatrixLanguage, MatrixModel, SweepRun, check_frozen
from lape_ds.training.metrics import read_metrics
from lape_ds.training.run_folder import RUN_SECTIONS, read_finished
from lape_ds.training.tuned import tuned_rate
from lape_ds.writing import write_json

_SCHEMA_VERSION = 2  # of tuned.json

State = Literal["finished", "failed", "begun", "waiting"]


@dataclass(frozen=True)
class Failure:
    """Why a cell is not finished and is not tried again unless asked to.

    Attributes:
        stage: `pretrain`, `identify`, `sweep`, `export` or `eval`.
        reason: In one line.
        date: When.
    """

    stage: str
    reason: str
    date: str


@dataclass(frozen=True)
class Cell:
    """How far one is.

    Attributes:
        model: The model's name.
        language: Code of the target.
        variant: Of the sweep.
        state: `begun`: some of it is there, whether or not anything is at work on it now.
        failure: Of a failed one.
        num_runs: Planned.
        num_finished: Of them; diverged ones too, which are results.
        seconds: That its runs have trained and measured.
    """

    model: str
    language: str
    variant: str
    state: State
    failure: Failure | None
    num_runs: int
    num_finished: int
    seconds: float

    @property
    def is_left(self) -> bool:
        """Whether a run of the matrix takes it up: it is neither finished nor failed."""
        return self.state in ("begun", "waiting")


@dataclass(frozen=True)
class TunedRun:
    """A run that stands for its method, as it was exported and measured.

    Attributes:
        variant: Of the sweep.
        seed: Its own.
        learning_rate: Its variant's tuned one.
    """

    variant: str
    seed: int
    learning_rate: float

    @property
    def label(self) -> str:
        """Of its model's folder, and of its results."""
        return f"{self.variant}-seed-{self.seed}"


def read_cells(matrix: Matrix) -> list[Cell]:
    """Every cell, in the order in which they are run."""
    return [
        read_cell(model, language, variant, measurement=how)
        for model in matrix.models
        for how in [measurement_of(matrix, model)]
        for language in model.languages
        for variant in language.variants
    ]


def check_settings(matrix: Matrix) -> None:
    """Makes sure that all runs which are there are of the matrix as it is.

    Raises:
        UserError: One is of other settings; says which.
    """
    for language in matrix.languages:
        for run in language.runs:
            if run.run_dir.exists():
                check_frozen(run.recipe, run.run_dir, sections=RUN_SECTIONS)


def read_cell(model: MatrixModel, language: MatrixLanguage, variant: str, *, measurement: str | None) -> Cell:
    """One cell.

    Args:
        model: Its model.
        language: Its language.
        variant: Its method.
        measurement: How its tuned runs are to be measured, by measuring.py; None where they are not.
    """
    runs = language.runs_of(variant)
    num_finished = sum(read_finished(run.run_dir) is not None for run in runs)
    seconds = sum(seconds_of(run) for run in runs)
    failure = read_failure(model, language, variant)
    trained = num_finished == len(runs)
    done = trained and (measurement is None or _is_measured(language, variant, runs, measurement))
    state: State = "waiting"
    if done:
        state = "finished"
    elif failure is not None:
        state = "failed"
    elif seconds > 0:
        state = "begun"
    return Cell(
        model.name,
        language.code,
        variant,
        state,
        None if done else failure,
        len(runs),
        num_finished,
        round(seconds, 1),
    )


def seconds_of(run: SweepRun) -> float:
    """That a run has trained and measured, by its metrics."""
    path = run.run_dir / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    return sum(line.get("seconds", 0.0) + line.get("heldout_seconds", 0.0) for line in lines)


def _is_measured(language: MatrixLanguage, variant: str, runs: Sequence[SweepRun], measurement: str) -> bool:
    """Whether its tuned runs are; a variant of which every rate diverged has none."""
    measured = read_tuned(language)
    return all(measured.get(run) == measurement for run in tuned_runs(variant, runs))


def tuned_runs(variant: str, runs: Sequence[SweepRun]) -> list[TunedRun]:
    """A variant's runs at its tuned rate, one of each seed; none before there is one."""
    rate = tuned_rate(runs)
    return [
        TunedRun(variant, run.seed, rate) for run in runs if rate is not None and run.learning_rate == rate
    ]


def read_tuned(language: MatrixLanguage) -> dict[TunedRun, str | None]:
    """The tuned runs that were exported to be measured, and how they were; None: not to the end, a task may have failed."""
    path = _tuned_file(language)
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["schema_version"] != _SCHEMA_VERSION:  # it did not say how: they are measured again
        return {}
    return {TunedRun(**run["run"]): run["measurement"] for run in content["runs"]}


def write_tuned(language: MatrixLanguage, runs: Mapping[TunedRun, str | None]) -> None:
    """Keeps how runs are measured; of a variant that was tuned otherwise before, those now."""
    variants = {run.variant for run in runs}
    kept = {run: how for run, how in read_tuned(language).items() if run.variant not in variants}
    content = {
        "schema_version": _SCHEMA_VERSION,
        "kind": "tuned runs",
        "runs": [{"run": asdict(run), "measurement": how} for run, how in (kept | dict(runs)).items()],
    }
    write_json(_tuned_file(language), content)


def _tuned_file(language: MatrixLanguage) -> Path:
    return language.folder / "tuned.json"


def read_failure(model: MatrixModel, language: MatrixLanguage, variant: str) -> Failure | None:
    """Why a cell failed: its own reason, or its model's."""
    for path in (_failure_file(language, variant), model_failure_file(model)):
        if path.exists():
            return Failure(**json.loads(path.read_text(encoding="utf-8")))
    return None


def write_failure(path: Path, *, stage: str, reason: str) -> None:
    """Keeps a reason, in one line."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(path, asdict(Failure(stage, " ".join(reason.split()), date)))


def fail_cell(language: MatrixLanguage, variant: str, *, stage: str, reason: str) -> None:
    """Keeps why a cell failed."""
    write_failure(_failure_file(language, variant), stage=stage, reason=reason)


def model_failure_file(model: MatrixModel) -> Path:
    """Where it stands why a model could not be made or its neurons not be identified."""
    return model.recipe.output_dir / "failed.json"


def _failure_file(language: MatrixLanguage, variant: str) -> Path:
    return language.folder / "failed" / f"{variant}.json"


def forget_failures(model: MatrixModel, languages: Sequence[MatrixLanguage]) -> None:
    """So that what failed is tried again: of a model as a whole, and of some of its languages."""
    model_failure_file(model).unlink(missing_ok=True)
    for language in languages:
        for variant in language.variants:
            _failure_file(language, variant).unlink(missing_ok=True)
