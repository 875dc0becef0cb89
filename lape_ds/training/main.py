"""What every rank runs: the Python half of `launch/train.sh`.

The launcher gives `--local_rank=N RECIPE key=value …`, with `--sweep` before the recipe for all runs of its sweep; the rest
stands in the environment.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lape_ds.errors import UserError
from lape_ds.noise import quiet_deepspeed
from lape_ds.training.stopping import STOPPED, StopRequest

if TYPE_CHECKING:
    from lape_ds.training.loop import Training


def main(arguments: Sequence[str]) -> int:
    """Trains; returns the exit code: 0 done, 2 for what the user must mend, `STOPPED` for a run that is to go on."""
    quiet_deepspeed()
    from lape_ds.training import ranks

    arguments = [argument for argument in arguments if not argument.startswith("--local_rank")]
    with StopRequest() as stop:  # to the very end: a second SIGTERM must not change the exit code
        try:
            return _sweep(arguments[1:], stop) if arguments[:1] == ["--sweep"] else _train(arguments, stop)
        except (Exception, KeyboardInterrupt) as error:  # whatever it is, the other ranks must end too
            if ranks.world_size() > 1:
                ranks.fail(error)
            if not isinstance(error, UserError):
                raise
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            return 2
        finally:
            ranks.end()


def _train(arguments: Sequence[str], stop: StopRequest) -> int:
    from lape_ds.recipe import load_recipe
    from lape_ds.training import ranks
    from lape_ds.training.ranks import rank
    from lape_ds.training.setup import set_up

    if not arguments:
        raise UserError(
            "which recipe? e.g. launch/train.sh recipes/quickstart.yaml train.optimizer.learning_rate=1e-4"
        )
    recipe = load_recipe(arguments[0], arguments[1:])
    ranks.join(recipe.launch.timeout_minutes)
    training = set_up(recipe)
    if training.state.step < training.total_steps:
        return _run(training, stop)
    if rank() == 0:
        print(f"{training.run_dir} is already finished; `lape-ds export` writes the model", file=sys.stderr)
    return 0


def _run(training: Training, stop: StopRequest) -> int:
    from lape_ds.training.loop import run_training
    from lape_ds.training.ranks import rank

    finished = run_training(training, stop)
    if rank() == 0:
        step, where = training.state.step, training.run_dir
        if finished:
            print(f"trained {step:,} steps; `lape-ds export {where}` writes the model", file=sys.stderr)
        else:
            why = stop.reason or "as another rank was asked to"
            print(
                f"stopped after step {step:,} of {training.total_steps:,} ({why}); the same command goes on",
                file=sys.stderr,
            )
    return 0 if finished else STOPPED


def _sweep(arguments: Sequence[str], stop: StopRequest) -> int:
    from lape_ds.recipe import load_recipe
    from lape_ds.training import ranks
    from lape_ds.training.sweep import train_sweep

    recipe = load_recipe(arguments[0], arguments[1:])
    ranks.join(recipe.launch.timeout_minutes)
    return 0 if train_sweep(recipe, stop) else STOPPED


def run(arguments: Sequence[str]) -> None:
    """The whole process of a rank: `main`, then out."""
    code = main(arguments)
    from lape_ds.training.ranks import leave

    leave(code)


if __name__ == "__main__":
    run(sys.argv[1:])
