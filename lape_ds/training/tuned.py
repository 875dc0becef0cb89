"""The rate of a sweep's variant that gains most: whose checkpoints are kept, and which run stands for the method.

Beside the run folders; needs no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence, Set
from pathlib import Path
from statistics import fmean

from lape_ds.recipe import SweepRun
from lape_ds.training.run_folder import Finished, read_finished


def tuned_rate(runs: Sequence[SweepRun]) -> float | None:
    """The learning rate with the lowest held-out bits per byte of the trained languages, in the mean over seeds.

    Args:
        runs: All of one variant.

    Returns:
        Of the rates whose runs are all finished and none has diverged; None if there is none.
    """
    bits = {rate: _mean_bits(done) for rate, done in _whole_rates(runs).items()}
    known = {rate: value for rate, value in bits.items() if value is not None}
    return min(known, key=lambda rate: known[rate]) if known else None


def drop_untuned(runs: Sequence[SweepRun], *, sparing: Set[Path] = frozenset()) -> None:
    """Deletes the checkpoints of a variant's runs at rates that another one has beaten, or that diverged.

    A rate of which a run is missing keeps its own: it may still become the best.

    Args:
        runs: All of one variant.
        sparing: Folders of runs that keep theirs whatever has come of them.
    """
    best = tuned_rate(runs)
    beaten = _whole_rates(runs).keys() - {best}
    for run in runs:
        if run.learning_rate in beaten and run.run_dir not in sparing:
            shutil.rmtree(run.run_dir / "checkpoints", ignore_errors=True)


def _whole_rates(runs: Sequence[SweepRun]) -> dict[float, list[tuple[SweepRun, Finished]]]:
    """The rates whose runs are all finished."""
    rates = dict.fromkeys(run.learning_rate for run in runs)
    ends = {
        rate: [(run, read_finished(run.run_dir)) for run in runs if run.learning_rate == rate]
        for rate in rates
    }
    return {
        rate: [(run, end) for run, end in found if end is not None]
        for rate, found in ends.items()
        if all(end is not None for _, end in found)
    }


def _mean_bits(done: Sequence[tuple[SweepRun, Finished]]) -> float | None:
    if any(end.diverged is not None for _, end in done):
        return None
    return fmean(end.after[code] for run, end in done for code in run.recipe.trained_languages)
