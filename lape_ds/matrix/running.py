"""`lape-ds matrix run`: every cell to its end, the finished ones left alone.

Model by model: made where its recipe says how, its neurons identified once for all languages; then language by language a
sweep, and what the suite says of each method at its tuned rate. What fails is written down and the others go on. Each stage is
the command of its name on a recipe that stands in the folder, so a stage can also be run by hand.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from lape_ds.distributed.run_lock import take_lock
from lape_ds.distributed.stopping import STOPPED
from lape_ds.errors import UserError, tell_error
from lape_ds.matrix.measuring import failed_models, forget_errors, measurement_of, results_folder
from lape_ds.matrix.states import (
    TunedRun,
    check_settings,
    fail_cell,
    forget_failures,
    model_failure_file,
    read_cell,
    read_tuned,
    tuned_runs,
    write_failure,
    write_tuned,
)
from lape_ds.recipe import Matrix, MatrixLanguage, MatrixModel, load_recipe
from lape_ds.training.run_folder import read_finished

_SHOWN = 400  # characters of a reason


class Busy(UserError):
    """Another process is at work on a language."""


class StageFailed(Exception):
    """A stage ended with an error; says which, in one line."""


def run_matrix(matrix: Matrix, *, retry: bool = False, number: int | None = None) -> list[str]:
    """Runs what is neither finished nor failed.

    Args:
        matrix: As loaded.
        retry: Also what has failed.
        number: Only this one of `matrix.languages`; its model and neurons must be there.

    Returns:
        Languages that were left to another process, which is at work on them.

    Raises:
        UserError: There is no such number, its neurons are not there, or another process is at work on it; or there are runs
            of other settings.
        SystemExit: With `STOPPED` after a signal; the same command goes on.
    """
    check_settings(matrix)
    matrix.write_recipes()
    if number is not None:
        _run_one(matrix, number, retry=retry)
        return []
    busy = []
    for model in matrix.models:
        if retry:
            forget_failures(model, model.languages)
        if any(_to_do(matrix, model, language) for language in model.languages) and _prepare(model):
            for language in model.languages:
                try:
                    _run_language(matrix, model, language)
                except Busy as error:
                    tell_error(f"{model.name}, {language.code}: {error}")
                    busy.append(f"{model.name}, {language.code}")
    return busy


def _run_one(matrix: Matrix, number: int, *, retry: bool) -> None:
    if number >= len(matrix.languages):
        raise UserError(
            f"there is no {number} among {len(matrix.languages)} languages of models, counted from 0: an array of this matrix is "
            f"--array=0-{len(matrix.languages) - 1}"
        )
    language = matrix.languages[number]
    model = next(model for model in matrix.models if language in model.languages)
    if retry:  # other tasks of the array keep what they have written down
        forget_failures(model, [language])
    neurons = model.recipe.identify_dir / "neurons.safetensors"
    if _to_do(matrix, model, language) and not neurons.exists():
        raise UserError(
            f"{neurons} is not there, and the tasks of an array would all make it: first run `lape-ds identify "
            f"{model.recipe_file}`, or sbatch launch/slurm.sbatch --stage identify {model.recipe_file}"
        )
    _run_language(matrix, model, language)


def _to_do(matrix: Matrix, model: MatrixModel, language: MatrixLanguage) -> list[str]:
    """The variants that are neither finished nor failed."""
    how = measurement_of(matrix, model)
    cells = [read_cell(model, language, variant, measurement=how) for variant in language.variants]
    return [cell.variant for cell in cells if cell.is_left]


def _prepare(model: MatrixModel) -> bool:
    """Makes the model, where its recipe says how, and its neurons; whether both are there."""
    logs = model.recipe.output_dir / "logs"
    for stage in ("pretrain", "identify"):
        if stage == "pretrain" and model.recipe.model.create is None:
            continue
        try:
            run_stage([stage, str(model.recipe_file)], log=logs / f"{stage}.log")
        except StageFailed as error:
            write_failure(model_failure_file(model), stage=stage, reason=str(error))
            tell_error(f"{model.name}, {stage}: {error}")
            return False
    return True


def _run_language(matrix: Matrix, model: MatrixModel, language: MatrixLanguage) -> None:
    if not _to_do(matrix, model, language):
        return
    with _taken(language):
        variants = _to_do(matrix, model, language)  # whoever had the lock may have finished it
        if not variants:
            return
        _tell(f"== {model.name}, {language.code}: {', '.join(variants)}")
        _train(language, variants)
        trained = [variant for variant in variants if _is_trained(language, variant)]
        _draw_frontier(language, trained)
        how = measurement_of(matrix, model)
        if how is not None:
            _measure(language, trained, how, keep_models=matrix.section.keep_models)


def _taken(language: MatrixLanguage) -> IO[str]:
    """Makes a language this process's own.

    Raises:
        Busy: It is another's.
    """
    try:
        return take_lock(language.folder, instead="run another language with --number")
    except UserError as error:
        raise Busy(str(error)) from None


def _draw_frontier(language: MatrixLanguage, trained: Sequence[str]) -> None:
    if not trained:
        return
    from lape_ds.analysis.sweep.report import write_frontier

    try:
        write_frontier(load_recipe(language.recipe_file))
    except UserError as error:  # a picture does not keep the others from their end
        tell_error(f"{language.model}, {language.code}: {error}")


def _is_trained(language: MatrixLanguage, variant: str) -> bool:
    return all(read_finished(run.run_dir) is not None for run in language.runs_of(variant))


def _train(language: MatrixLanguage, variants: Sequence[str]) -> None:
    """All in one sweep; where that fails, variant by variant, so that one does not keep the others from their end."""
    reason = _sweep(language, variants)
    if reason is not None and len(variants) > 1:
        tell_error(f"{language.model}, {language.code}: {reason}; going on with each method by itself")
    for variant in variants if reason is not None else ():
        if _is_trained(language, variant):
            continue
        own = reason if len(variants) == 1 else _sweep(language, [variant])
        if own is not None:
            fail_cell(language, variant, stage="sweep", reason=own)
            tell_error(f"{language.model}, {language.code}, {variant}: {own}")


def _sweep(language: MatrixLanguage, variants: Sequence[str]) -> str | None:
    """Trains some variants; why it failed, or None."""
    from lape_ds.training.sweep_launch import launch_sweep

    path, overrides = str(language.recipe_file), _only(language, variants)
    recipe = load_recipe(path, overrides)
    try:
        launch_sweep(recipe, path, overrides)
    except UserError as error:
        return str(error)
    except SystemExit as ended:
        if ended.code == STOPPED:
            raise
        logs = sorted(recipe.sweep_dir.glob("worker-*.log"))
        return reason_in([line for log in logs for line in _lines(log)], code=ended.code)
    return None


def _only(language: MatrixLanguage, variants: Sequence[str]) -> list[str]:
    """What to set so that a sweep has only these variants; nothing for all of them."""
    sweep = language.recipe.sweep
    assert sweep is not None
    if list(variants) == language.variants:
        return []
    chosen = [one.model_dump(mode="json") for one in sweep.variants if one.name in variants]
    return [f"sweep.variants={json.dumps(chosen)}"]


def _measure(language: MatrixLanguage, variants: Sequence[str], how: str, *, keep_models: bool) -> None:
    """Exports each variant's tuned runs and measures them beside the base; a model that fails does not fail the others."""
    known = read_tuned(language)
    runs = {variant: tuned_runs(variant, language.runs_of(variant)) for variant in variants}
    exported = [
        run
        for own in runs.values()
        if not all(known.get(run) == how for run in own) and _export_all(language, own)
        for run in own
    ]
    if not exported:
        return
    labels = [run.label for run in exported]
    for run in exported:
        if run not in known:  # what lies there is of another rate
            shutil.rmtree(results_folder(language) / run.label, ignore_errors=True)
    write_tuned(language, dict.fromkeys(exported))
    forget_errors(language, labels)
    _tell(f"measuring {', '.join(labels)}")
    failed = _evaluate(language, labels)
    for run in exported:
        if run.label in failed:
            fail_cell(language, run.variant, stage="eval", reason=failed[run.label])
    write_tuned(language, {run: None if run.label in failed else how for run in exported})
    if not keep_models:
        shutil.rmtree(tuned_folder(language))


def _evaluate(language: MatrixLanguage, labels: Sequence[str]) -> Mapping[str, str]:
    """Runs the suites over exported models; label -> reason, of those that failed."""
    folders = [str(tuned_folder(language) / label) for label in labels]
    try:
        run_stage(["eval", str(language.recipe_file), *folders], log=language.folder / "logs" / "eval.log")
    except StageFailed as error:
        tell_error(f"{language.model}, {language.code}, eval: {error}")
        return failed_models(language, labels, reason=str(error))
    return {}


def tuned_folder(language: MatrixLanguage) -> Path:
    """Where the tuned runs' models lie while they are measured."""
    return language.folder / "tuned"


def _export_all(language: MatrixLanguage, runs: Sequence[TunedRun]) -> bool:
    """Writes the models of one variant's tuned runs, after their last step: what the frontier's points are of."""
    from lape_ds.training.export import export_model

    places = {(run.variant, run.learning_rate, run.seed): run.run_dir for run in language.runs}
    for run in runs:
        run_dir = places[run.variant, run.learning_rate, run.seed]
        try:
            if not (run_dir / "checkpoints").exists():
                raise UserError(
                    f"{run_dir} has no checkpoints any more: another rate was the tuned one when it ended; delete it, and "
                    "`lape-ds matrix run … --retry` trains it again"
                )
            done = export_model(run_dir, checkpoint="last", folder=tuned_folder(language) / run.label)
            if done.step != done.total_steps:
                raise UserError(
                    f"{run_dir} has no whole checkpoint after its last step, {done.total_steps:,}, but after {done.step:,}: "
                    "delete it, and `lape-ds matrix run … --retry` trains it again"
                )
        except (UserError, OSError, RuntimeError) as error:  # e.g. the disk is full: the others go on
            fail_cell(language, run.variant, stage="export", reason=str(error))
            tell_error(f"{language.model}, {language.code}, {run.variant}: {error}")
            return False
    return True


def run_stage(words: Sequence[str], *, log: Path) -> None:
    """Runs `lape-ds <words>` in a process of its own, which takes its memory with it.

    Args:
        words: Of the command line.
        log: Gets what it prints.

    Raises:
        StageFailed: It ended with an error.
        SystemExit: With `STOPPED`, if it was stopped.
    """
    from lape_ds.distributed.launchers.job import COMMAND_LINE
    from lape_ds.distributed.launchers.running import run_launchers

    log.parent.mkdir(parents=True, exist_ok=True)
    _tell(f"lape-ds {' '.join(words[:2])}   (log: {log})")
    code = run_launchers([[sys.executable, "-m", COMMAND_LINE, *words]], logs=[log])
    if code == STOPPED:
        _tell("stopped; the same command goes on")
        raise SystemExit(STOPPED)
    if code:
        raise StageFailed(reason_in(_lines(log), code=code))


def reason_in(lines: Sequence[str], *, code: object) -> str:
    """What a log says of its end: the last refusal, else the last exception, else how the process ended."""
    for pattern in (
        r"error: (.*)",
        r"(?:\[rank\d+\]: )?((?:\w+\.)*\w*(?:Error|Exception)\b.*)",
    ):  # as torch's hook tells it
        found = [match[1] for line in lines if (match := re.match(pattern, line))]
        if found:
            return found[-1][:_SHOWN]
    return f"ended with exit code {code}"


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
