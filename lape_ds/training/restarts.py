"""A job that Slurm or torchrun has started again: with the same command, also where that says to begin anew.

Beside the set-up, on the first rank. Needs no torch.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from lape_ds.distributed.launchers import slurm
from lape_ds.recipe import Recipe
from lape_ds.writing import write_text

_MARK = ".job"  # in the run folder, of the job that has begun it with train.resume=never


def goes_on(recipe: Recipe) -> bool:
    """Whether the run goes on with what its folder holds.

    With `train.resume: never` too where an earlier start of this very job has made the folder: what it holds is not what the
    user wants to be rid of. If that start got no further than its set-up, the folder is still an older run's.
    """
    if recipe.train.resume == "auto":
        return True
    mark = recipe.run_dir / _MARK
    begun = mark.read_text(encoding="utf-8").splitlines() if mark.exists() else []
    jobs = _jobs()
    return any(name in begun and int(os.environ.get(count, "0")) > 0 for count, name in jobs.items())


def mark_begun(run_dir: Path) -> None:
    """Says whose start has begun this run."""
    write_text(run_dir / _MARK, "".join(f"{name}\n" for name in _jobs().values()))


def _jobs() -> dict[str, str]:
    """What stays the same when it is started again; by the variable that counts how often it was."""
    jobs = {}
    if "SLURM_JOB_ID" in os.environ:
        jobs["SLURM_RESTART_COUNT"] = f"slurm {slurm.job_name()}"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # "none" unless torchrun was given --rdzv-id; the agent then, which outlives its workers.
        run = os.environ["TORCHELASTIC_RUN_ID"].replace("none", f"{socket.gethostname()} {os.getppid()}")
        jobs["TORCHELASTIC_RESTART_COUNT"] = f"torchrun {run}"
    return jobs
