"""Training a whole sweep in ranks that start once: importing torch and DeepSpeed takes longer than a small run.

Above the loop: each run is set up, trained and taken down as `lape-ds train` would do it, in a folder of its own. What is
finished is left alone, so the same command goes on with a sweep that was stopped.
"""

from __future__ import annotations

import fcntl
import gc
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from lape_ds.distributed.ranks import by_first, rank, start
from lape_ds.distributed.stopping import StopRequest
from lape_ds.errors import Diverged
from lape_ds.recipe import Recipe, SweepRun, SweepSection, sweep_runs
from lape_ds.training.loop import Training, run_training
from lape_ds.training.run_folder import read_finished
from lape_ds.training.setup import set_up
from lape_ds.training.tuned import drop_untuned


def train_sweep(recipe: Recipe, stop: StopRequest) -> bool:
    """Trains every run that is neither finished nor in another worker's hands. Every rank must call it.

    Args:
        recipe: As loaded.
        stop: Is asked at the boundaries of steps.

    Returns:
        Whether the end of the list was reached; False after a stop request, with a checkpoint of the run at hand.

    Raises:
        UserError: Something in the recipe or its files must be mended. A run that diverges is a result.
    """
    start()
    keep = (recipe.sweep or SweepSection()).keep_checkpoints
    base, runs = _Base(), sweep_runs(recipe)
    for run in runs:
        with _claimed(run) as mine:
            if not mine:
                continue
            _tell(f"== {run.label} ({run.run_dir})")
            training = set_up(run.recipe)
            training.keep_checkpoints = keep is not False
            training.base_bits = base.bits_on(training)
            done = _train(training, stop)
            base.remember(training)
            _take_down(training)
            del training
            gc.collect()
            if not done:
                return False
            if keep == "tuned":
                by_first(partial(_drop_untuned, runs, run))
    return True


def _drop_untuned(runs: Sequence[SweepRun], own: SweepRun) -> None:
    """Of the variant of a run that has ended here; what another worker still has in hand stays until the sweep's end.

    A run is finished by the last line of its metrics, and its folder is still in use then.
    """
    with ExitStack() as held:
        variant = [run for run in runs if run.variant == own.variant]
        finished = [run for run in variant if read_finished(run.run_dir) is not None]
        in_hand = {run.run_dir for run in finished if run is not own and not _take(run, held)}
        drop_untuned(variant, sparing=in_hand)


@dataclass
class _Base:
    """What the model measures before training: the same for every run, as long as that is on the same text."""

    text: dict[str, list[int]] | None = None
    bits: dict[str, float] | None = None

    def bits_on(self, training: Training) -> dict[str, float] | None:
        return self.bits if self.text == _heldout_text(training) else None

    def remember(self, training: Training) -> None:
        self.text, self.bits = _heldout_text(training), training.base_bits


def _heldout_text(training: Training) -> dict[str, list[int]]:
    """Bytes of each held-out document: a run that replays much of a language may leave less of it to measure on."""
    return {
        code: [document.num_bytes for document in heldout.documents]
        for code, heldout in training.heldout.items()
    }


@contextmanager
def _claimed(run: SweepRun) -> Iterator[bool]:
    """Whether this worker is to train a run now; as long as it does, no other one takes it. Collective."""
    with ExitStack() as held:
        yield by_first(lambda: _take(run, held) and read_finished(run.run_dir) is None)


def _take(run: SweepRun, held: ExitStack) -> bool:
    """Locks a run's claim, unless another worker has; it is given back at the end of `held`, or with this process."""
    folder = run.run_dir.parent
    folder.mkdir(parents=True, exist_ok=True)
    claim = held.enter_context((folder / f".{run.run_dir.name}.claim").open("w"))
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _train(training: Training, stop: StopRequest) -> bool:
    """Trains to the end, to divergence or to a stop request; only the latter is no end."""
    try:
        if not run_training(training, stop):
            _tell("stopped; the same command goes on")
            return False
    except Diverged as error:
        _tell(str(error))
    if not training.keep_checkpoints:
        by_first(lambda: shutil.rmtree(training.checkpoints, ignore_errors=True))
    return True


def _take_down(training: Training) -> None:
    """Frees what a run holds, so that the next one has the memory."""
    training.engine.destroy()
    if training.run_lock is not None:
        training.run_lock.close()


def _tell(text: str) -> None:
    if rank() == 0:
        print(text, file=sys.stderr, flush=True)
