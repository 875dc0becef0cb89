"""What every rank runs: the Python half of `launch/train.sh`.

A launcher gives `[--local_rank=N] [--master_addr=A] [--master_port=P] RECIPE key=value …`, with `--sweep` before the recipe for
all runs of its sweep and `--trial` for a run of which only the speed is wanted (tune.py); the rest stands in the environment,
where torchrun, DeepSpeed and our launcher put it, or as Slurm says it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from lape_ds.distributed.stopping import STOPPED, StopRequest
from lape_ds.errors import UserError, tell_error
from lape_ds.noise import quiet_deepspeed

if TYPE_CHECKING:
    from lape_ds.recipe import Recipe
    from lape_ds.training.loop import Training

OUT_OF_MEMORY = "out of memory: "  # how the line begins in which a trial's rank says so


def main(arguments: Sequence[str]) -> int:
    """Trains; returns the exit code: 0 done, 2 for what the user must mend, `STOPPED` for a run that is to go on."""
    quiet_deepspeed()
    with StopRequest() as stop:  # to the very end: a second SIGTERM must not change the exit code
        try:
            options, rest = _take_options(arguments)
            if rest:
                _enter(rest, options)
            work = _sweep if "sweep" in options else _trial if "trial" in options else _train
            return work(rest, stop)
        except (Exception, KeyboardInterrupt) as error:  # whatever it is, the other ranks must end too
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                _ranks().fail(error)
            if not isinstance(error, UserError):
                raise
            tell_error(error)
            return 2
        finally:
            if "lape_ds.distributed.ranks" in sys.modules:
                _ranks().end()


def _ranks() -> ModuleType:
    from lape_ds.distributed import ranks

    ranks.name_accelerator()
    return ranks


def _take_options(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Options (all of the form --name or --name=value) → by name; and the rest."""
    rest, options = list(arguments), {}
    while rest and rest[0].startswith("--"):
        name, _, value = rest.pop(0)[2:].partition("=")
        options[name.replace("-", "_")] = value
    unknown = options.keys() - {"local_rank", "master_addr", "master_port", "sweep", "trial"}
    if unknown:
        raise UserError(
            f"unknown option --{sorted(unknown)[0]}; a rank takes RECIPE key=value …, launcher options go to launch/train.sh"
        )
    return options, rest


def _enter(arguments: Sequence[str], options: dict[str, str]) -> None:
    """What must stand in the environment before torch is imported: first which rank this is, so that a mistake is told by one."""
    from lape_ds.distributed.launchers.slurm import become_rank
    from lape_ds.recipe import load_recipe
    from lape_ds.recipe.environment import enter_environment

    for name in ("master_addr", "master_port"):
        if name in options:
            os.environ[name.upper()] = options[name]
    become_rank()
    enter_environment(load_recipe(arguments[0], arguments[1:]).env)


def _train(arguments: Sequence[str], stop: StopRequest) -> int:
    from lape_ds.recipe import load_recipe

    if not arguments:
        raise UserError(
            "which recipe? e.g. launch/train.sh recipes/quickstart.yaml train.optimizer.learning_rate=1e-4"
        )
    recipe = load_recipe(arguments[0], arguments[1:])
    ranks = _join(recipe, stop)
    from lape_ds.training.loop import at_end
    from lape_ds.training.setup import set_up

    training = set_up(recipe)
    if not at_end(training):
        return _run(training, stop)
    if ranks.rank() == 0:
        print(f"{training.run_dir} is already finished; `lape-ds export` writes the model", file=sys.stderr)
    return 0


def _join(recipe: Recipe, stop: StopRequest) -> ModuleType:
    ranks = _ranks()
    stop.tell_early = ranks.tell_stopped
    ranks.join(recipe.launch.timeout_minutes)
    return ranks


def _run(training: Training, stop: StopRequest) -> int:
    from lape_ds.distributed.ranks import rank
    from lape_ds.training.loop import run_training
    from lape_ds.training.outcome import describe_heldout

    finished = run_training(training, stop)
    if rank() == 0:
        step, where = training.state.step, training.run_dir
        if finished:
            print(f"trained {step:,} steps; `lape-ds export {where}` writes the model", file=sys.stderr)
            if training.heldout:
                print(describe_heldout(where, training.recipe.trained_languages), file=sys.stderr)
        else:
            why = stop.reason or "as another rank was asked to"
            print(
                f"stopped after step {step:,} of {training.total_steps:,} ({why}); the same command goes on",
                file=sys.stderr,
            )
    return 0 if finished else STOPPED


def _trial(arguments: Sequence[str], stop: StopRequest) -> int:
    """A training that leaves no checkpoint; a rank without memory says so and goes, and the launcher stops the others."""
    from lape_ds.recipe import load_recipe

    recipe = load_recipe(arguments[0], arguments[1:])
    _join(recipe, stop)
    from lape_ds.distributed.ranks import leave
    from lape_ds.training.loop import run_training
    from lape_ds.training.setup import set_up

    try:
        training = set_up(recipe)
        training.keep_checkpoints = False
        return 0 if run_training(training, stop) else STOPPED
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"{OUT_OF_MEMORY}{' '.join(str(error).split())[:300]}", file=sys.stderr, flush=True)
        leave(1)


def is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether memory ran out on this rank or, by what `together` raises here, on another."""
    # torch's CPU allocator has no exception of its own, and `together` keeps no more of one than its name and text.
    words = ("out of memory", "OutOfMemoryError", "MemoryError", "can't allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def _sweep(arguments: Sequence[str], stop: StopRequest) -> int:
    from lape_ds.recipe import load_recipe

    recipe = load_recipe(arguments[0], arguments[1:])
    _join(recipe, stop)
    from lape_ds.training.sweep import train_sweep

    return 0 if train_sweep(recipe, stop) else STOPPED


def run(arguments: Sequence[str]) -> NoReturn:
    """The whole process of a rank: `main`, then out."""
    code = main(arguments)
    from lape_ds.distributed.ranks import leave

    leave(code)


if __name__ == "__main__":
    run(sys.argv[1:])
