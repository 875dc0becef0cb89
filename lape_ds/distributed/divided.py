"""A stage that ranks divide among them (`eval`, `identify`): done in this process, by ranks started here, or as one of them.

Between the command line and the stage. Needs no torch until it is known that this process works.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lape_ds.distributed.launch import launch_ranks
from lape_ds.distributed.launchers import slurm
from lape_ds.distributed.launchers.hosts import local_slots
from lape_ds.distributed.stopping import StopRequest
from lape_ds.recipe import Recipe
from lape_ds.recipe.environment import enter_environment

_TIMEOUT_MINUTES = 10.0  # without a recipe


@dataclass(frozen=True)
class DividedStage:
    """What was asked, and how it is done.

    Attributes:
        name: Of the command, e.g. `eval`.
        words: Behind it on the command line; ranks are asked in the same words.
        load: Gives the recipe that says where and how, or None where there is none.
        work: What each process does, whether it is alone or a rank; gives the exit code.
        is_divided: Whether several ranks can do it; told the recipe.
        stopped: What is told behind `stopped` where a signal ends the stage; told the recipe as far as it is loaded.
        check: Refuses, before ranks are started, what can be seen without a model and in no time; told the recipe.
    """

    name: str
    words: Sequence[str]
    load: Callable[[], Recipe | None]
    work: Callable[[Recipe | None], int]
    is_divided: Callable[[Recipe | None], bool]
    stopped: Callable[[Recipe | None], str]
    check: Callable[[Recipe | None], None] = lambda _: None


def run_divided(stage: DividedStage) -> int:
    """Does a stage with as many ranks as there are GPUs here, `launch.num_ranks` says or a launcher has started.

    Returns:
        The exit code.

    Raises:
        UserError: What is asked cannot be done. Of ranks, one tells it and all end.
    """
    if is_started_as_rank():
        return _as_rank(stage)
    recipe = _enter(stage)
    num_ranks = None if recipe is None else recipe.launch.num_ranks
    if stage.is_divided(recipe) and len(slots := local_slots(num_ranks)) > 1:
        stage.check(recipe)
        return launch_ranks(stage.name, stage.words, slots)
    with StopRequest(lambda: stage.stopped(recipe)):
        return stage.work(recipe)


def is_started_as_rank() -> bool:
    """Whether a launcher has started this process as a rank, be it the only one."""
    return slurm.is_rank() or "RANK" in os.environ


def _enter(stage: DividedStage) -> Recipe | None:
    recipe = stage.load()
    if recipe is not None:
        enter_environment(recipe.env)
    return recipe


def _as_rank(stage: DividedStage) -> int:
    """Whatever ends one rank ends all of them, in one line."""
    recipe: Recipe | None = None
    with StopRequest(lambda: stage.stopped(recipe)) as stop:
        slurm.become_rank()  # first which rank this is, so that a mistake is told by one
        from lape_ds.distributed import ranks

        try:
            recipe = _enter(stage)
            stop.tell_early = ranks.tell_stopped
            ranks.join(_TIMEOUT_MINUTES if recipe is None else recipe.launch.timeout_minutes)
            ranks.take_device()
            code = stage.work(recipe)
        except (Exception, KeyboardInterrupt) as error:  # whatever it is, the other ranks must end too
            if ranks.world_size() > 1:
                ranks.fail(error)
            raise
        ranks.end()
        ranks.leave(code)
