"""Starts a sweep's workers and watches their run folders: the first half of `lape-ds sweep`.

Before the ranks (sweep.py); after them the analysis reads what they measured.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lape_ds.distributed.stopping import STOPPED
from lape_ds.errors import UserError
from lape_ds.recipe import Recipe, SweepRun, SweepSection, check_frozen, sweep_runs
from lape_ds.runlog import Progress
from lape_ds.training.metrics import read_metrics
from lape_ds.training.run_folder import RUN_SECTIONS, read_facts, read_finished
from lape_ds.training.tuned import drop_untuned

_SECONDS_BETWEEN_LOOKS = 1.0
_LINES_OF_LOG = 20


def launch_sweep(recipe: Recipe, recipe_path: str, overrides: Sequence[str]) -> None:
    """Trains what is not trained yet of a recipe's sweep.

    Args:
        recipe: As loaded from the other two.
        recipe_path: The recipe, for the ranks.
        overrides: `key=value`, for the ranks.

    Raises:
        UserError: The recipe or its files must be mended, or finished runs are of another recipe.
        SystemExit: With a worker's exit code, if it failed or was stopped.
    """
    runs = sweep_runs(recipe)
    for run in runs:
        check_frozen(run.recipe, run.run_dir, sections=RUN_SECTIONS)
    if all(read_finished(run.run_dir) is not None for run in runs):
        return
    _check_adapters(recipe, runs)
    from lape_ds.distributed.launch import launcher_command, slots_of_workers
    from lape_ds.distributed.launchers.running import run_launchers

    num_ranks = runs[0].recipe.launch.num_ranks
    workers = slots_of_workers((recipe.sweep or SweepSection()).workers, num_ranks)
    recipe.sweep_dir.mkdir(parents=True, exist_ok=True)
    for log in recipe.sweep_dir.glob("worker-*.log"):  # of a start with more workers
        log.unlink()
    logs = [recipe.sweep_dir / f"worker-{number}.log" for number in range(len(workers))]
    print(f"{len(runs)} runs; what their ranks say goes to {logs[0].with_stem('worker-*')}", file=sys.stderr)
    commands = [launcher_command(slots, ["--sweep", recipe_path, *overrides]) for slots in workers]
    with ExitStack() as shown:
        watch = _Watch(runs, shown)
        environment = _shared_cores(len(workers), num_ranks or 1)
        code = run_launchers(commands, logs=logs, environment=environment, watch=watch.look)
        watch.look(now=True)
    if code:
        _tell_failure(code, logs)
    if recipe.sweep is not None and recipe.sweep.keep_checkpoints == "tuned":
        for variant in dict.fromkeys(run.variant for run in runs):
            drop_untuned([run for run in runs if run.variant == variant])


def _check_adapters(recipe: Recipe, runs: Sequence[SweepRun]) -> None:
    """A variant that the model cannot have is told before the first run, not when its turn comes."""
    from lape_ds.model.loading import load_skeleton, recipe_model
    from lape_ds.subnetwork.adapters import ADAPTER_METHODS, check_dense

    wanted = {
        run.recipe.train.method: run.variant for run in runs if run.recipe.train.method in ADAPTER_METHODS
    }
    if not wanted:
        return
    skeleton = load_skeleton(recipe_model(recipe))
    for method, variant in wanted.items():
        try:
            check_dense(skeleton, method)
        except UserError as error:
            raise UserError(f"sweep.variants: {variant}: {error}; list the variants without it") from None


class _Watch:
    """Counts runs, and steps of those at hand as parts of a run, on a bar that lasts as long as `shown`.

    The bar begins with the first step: the time that ranks take to start tells nothing of the time that is left.
    """

    def __init__(self, runs: Sequence[SweepRun], shown: ExitStack) -> None:
        self._labels = {run.run_dir: run.label for run in runs}
        self._done = {run.run_dir: _part_done(run.run_dir) for run in runs}
        self._shown = shown
        self._bar: Progress | None = None
        self._looked = time.monotonic()

    def look(self, *, now: bool = False) -> None:
        """Looks into the folders of the runs that are not finished, once a second."""
        if not now and time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        for run_dir, before in self._done.items():
            if before < 1 and (part := _part_done(run_dir)) != before:
                if self._bar is None:
                    self._bar = self._shown.enter_context(
                        Progress("Sweep", total=len(self._done), unit="runs", done=sum(self._done.values()))
                    )
                self._done[run_dir] = part
                self._bar.advance(part - before, note=f"{self._labels[run_dir]}: {100 * part:.0f} %")


def _part_done(run_dir: Path) -> float:
    """0 to 1; less than 1 as long as the run is not finished."""
    if read_finished(run_dir) is not None:
        return 1.0
    facts = read_facts(run_dir)
    if facts is None or not (run_dir / "metrics.jsonl").exists():
        return 0.0
    lines = read_metrics(run_dir / "metrics.jsonl")
    return min(0.99, lines[-1]["step"] / facts["total_steps"]) if lines else 0.0


def _shared_cores(num_workers: int, num_ranks: int) -> dict[str, str]:
    """Without a GPU the workers share this machine's cores; the ranks of one share them among themselves (ranks.py)."""
    if num_workers == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // (num_workers * num_ranks)))}


def _tell_failure(code: int, logs: Sequence[Path]) -> None:
    texts = {path: path.read_text(encoding="utf-8", errors="replace").splitlines() for path in logs}
    if code == 2:
        told = [line for lines in texts.values() for line in lines if line.startswith("error: ")]
        if told:
            raise UserError(told[0].removeprefix("error: "))
    if code != STOPPED:
        for path, lines in texts.items():
            print(f"-- the end of {path}:", *lines[-_LINES_OF_LOG:], sep="\n", file=sys.stderr)
    else:
        print("stopped; the same command goes on", file=sys.stderr)
    raise SystemExit(code)
