"""What every rank runs: the Python half of `launch/train.sh`.

The launcher gives `--local_rank=N RECIPE key=value …`, with `--sweep` before the recipe for all runs of its sweep and `--trial`
for a run of which only the speed is wanted (tune.py); the rest stands in the environment.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from lape_ds.errors import UserError
from lape_ds.noise import quiet_deepspeed

OUT_OF_MEMORY = "out of memory: "  # how the line begins in which a trial's rank says so
STOPPED = 130  # as `lape-ds` after an interruption: what comes after training must not take the run for a finished one


def main(arguments: Sequence[str]) -> int:
    """Trains; returns the exit code: 0 done, 2 for what the user must mend, `STOPPED` for a run that is to go on."""
    quiet_deepspeed()
    from lape_ds.training import ranks

    arguments = [argument for argument in arguments if not argument.startswith("--local_rank")]
    try:
        if arguments[:1] == ["--trial"]:
            return _trial(arguments[1:])
        return _sweep(arguments[1:]) if arguments[:1] == ["--sweep"] else _train(arguments)
    except UserError as error:
        if ranks.rank() > 0:
            time.sleep(2)  # most mistakes are seen by all ranks at once: let the first one tell
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return 2
    finally:
        ranks.end()


def _train(arguments: Sequence[str]) -> int:
    from lape_ds.recipe import load_recipe
    from lape_ds.training.loop import StopRequest, run_training
    from lape_ds.training.ranks import rank
    from lape_ds.training.setup import set_up

    if not arguments:
        raise UserError(
            "which recipe? e.g. launch/train.sh recipes/quickstart.yaml train.optimizer.learning_rate=1e-4"
        )
    recipe = load_recipe(arguments[0], arguments[1:])
    training = set_up(recipe)
    if training.state.step >= training.total_steps:
        if rank() == 0:
            print(
                f"{training.run_dir} is already finished; `lape-ds export` writes the model", file=sys.stderr
            )
        return 0
    finished = run_training(training, StopRequest())
    if rank() == 0:
        step, where = training.state.step, training.run_dir
        if finished:
            print(f"trained {step:,} steps; `lape-ds export {where}` writes the model", file=sys.stderr)
        else:
            print(
                f"stopped after step {step:,} of {training.total_steps:,}; the same command goes on",
                file=sys.stderr,
            )
    return 0 if finished else STOPPED


def _trial(arguments: Sequence[str]) -> int:
    """A training that leaves no checkpoint; a rank without memory says so and goes, and the launcher stops the others."""
    import torch

    from lape_ds.recipe import load_recipe
    from lape_ds.training.loop import StopRequest, run_training
    from lape_ds.training.ranks import leave
    from lape_ds.training.setup import set_up

    try:
        training = set_up(load_recipe(arguments[0], arguments[1:]))
        training.keep_checkpoints = False
        return 0 if run_training(training, StopRequest()) else STOPPED
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # torch's CPU allocator has no exception of its own.
        if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
            raise
        print(f"{OUT_OF_MEMORY}{' '.join(str(error).split())[:300]}", file=sys.stderr, flush=True)
        leave(1)


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _sweep(arguments: Sequence[str]) -> int:
    from lape_ds.recipe import load_recipe
    from lape_ds.training.sweep import train_sweep

    return 0 if train_sweep(load_recipe(arguments[0], arguments[1:])) else STOPPED


def run(arguments: Sequence[str]) -> None:
    """The whole process of a rank: `main`, then out."""
    code = main(arguments)
    from lape_ds.training.ranks import leave

    leave(code)


if __name__ == "__main__":
    run(sys.argv[1:])
