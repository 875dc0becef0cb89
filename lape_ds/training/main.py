"""What every rank runs: the Python half of `launch/train.sh`.

A launcher gives `[--local_rank=N] [--master_addr=A] [--master_port=P] RECIPE key=value …`, with `--sweep` before the recipe for
all runs of its sweep; the rest stands in the environment, where torchrun, DeepSpeed and our launcher put it, or as Slurm says it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from lape_ds.errors import UserError
from lape_ds.noise import quiet_deepspeed

STOPPED = 130  # as `lape-ds` after an interruption: what comes after training must not take the run for a finished one


def main(arguments: Sequence[str]) -> int:
    """Trains; returns the exit code: 0 done, 2 for what the user must mend, `STOPPED` for a run that is to go on."""
    quiet_deepspeed()
    try:
        options, arguments = _take_options(arguments)
        if arguments:
            _enter(arguments, options)
    except UserError as error:
        return _refuse(error)
    import torch

    # DeepSpeed would guess, and take a machine without a GPU for one of some other kind.
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    from lape_ds.training import ranks

    try:
        return _sweep(arguments) if "sweep" in options else _train(arguments)
    except UserError as error:
        return _refuse(error)
    finally:
        ranks.end()


def _take_options(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Options (all of the form --name or --name=value) → by name; and the rest."""
    rest, options = list(arguments), {}
    while rest and rest[0].startswith("--"):
        name, _, value = rest.pop(0)[2:].partition("=")
        options[name.replace("-", "_")] = value
    unknown = options.keys() - {"local_rank", "master_addr", "master_port", "sweep"}
    if unknown:
        raise UserError(
            f"unknown option --{sorted(unknown)[0]}; a rank takes RECIPE key=value …, launcher options go to launch/train.sh"
        )
    return options, rest


def _enter(arguments: Sequence[str], options: dict[str, str]) -> None:
    """What must stand in the environment before torch is imported."""
    from lape_ds.recipe import load_recipe
    from lape_ds.recipe.environment import enter_environment
    from lape_ds.training.launchers.slurm import become_rank

    enter_environment(load_recipe(arguments[0], arguments[1:]).env)
    for name in ("master_addr", "master_port"):
        if name in options:
            os.environ[name.upper()] = options[name]
    become_rank()


def _refuse(error: UserError) -> int:
    from lape_ds.training.launchers.slurm import process_number

    if process_number() > 0:
        time.sleep(2)  # most mistakes are seen by all ranks at once: let the first one tell
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return 2


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


def _sweep(arguments: Sequence[str]) -> int:
    from lape_ds.recipe import load_recipe
    from lape_ds.training.sweep import train_sweep

    return 0 if train_sweep(load_recipe(arguments[0], arguments[1:])) else STOPPED


def run(arguments: Sequence[str]) -> NoReturn:
    """The whole process of a rank: `main`, then out."""
    code = main(arguments)
    from lape_ds.training.ranks import leave

    leave(code)


if __name__ == "__main__":
    run(sys.argv[1:])
