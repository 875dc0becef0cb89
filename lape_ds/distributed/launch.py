"""Starts the ranks: the shell half of `launch/*.sh`, and of `lape-ds train`, `identify` and `eval`.

Before the ranks: on this machine, on the hosts of a hostfile, or by becoming one where srun or torchrun has started us as one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from lape_ds.distributed.launchers import slurm
from lape_ds.distributed.launchers.hosts import LOCAL, chosen_hosts, first_address, local_slots, visible_gpus
from lape_ds.distributed.launchers.job import COMMAND_LINE, TRAINING, Job, free_port, node_command
from lape_ds.distributed.launchers.options import HOST_OPTIONS, CommandLine, read_command_line
from lape_ds.distributed.launchers.pdsh import run_on_hosts
from lape_ds.distributed.launchers.running import run_launchers
from lape_ds.errors import UserError, tell_error
from lape_ds.recipe import load_recipe

_STAGES = ("train", "identify", "eval")


def launch_training(recipe_path: str, overrides: Sequence[str]) -> None:
    """Runs a training of this machine to its end; inside srun or torchrun, trains as the rank that this process is.

    Args:
        recipe_path: The recipe.
        overrides: `key=value`.

    Raises:
        UserError: The recipe is not valid.
        SystemExit: With the ranks' exit code, if it is not 0.
    """
    code = _launch("train", CommandLine({}, recipe_path, list(overrides)))
    if code:
        raise SystemExit(code)


def launcher_command(slots: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The command that starts ranks with these arguments on slots of this machine, on a port of their own."""
    job = Job({LOCAL: list(slots)}, TRAINING, list(arguments), "127.0.0.1", free_port())
    return node_command(job, LOCAL)


def slots_of_workers(num_workers: int, num_ranks: int | None) -> list[list[str]]:
    """Slots of trainings side by side: ranks of their own, on GPUs of their own.

    Fewer workers than asked for where there are not GPUs enough: the same recipe runs on a laptop and on a server.
    """
    gpus = visible_gpus()
    if not gpus:
        return [local_slots(num_ranks)] * num_workers
    num_workers = min(num_workers, max(1, len(gpus) // (num_ranks or 1)))
    each = min(num_ranks or len(gpus), len(gpus) // num_workers)
    return [gpus[number * each : (number + 1) * each] for number in range(num_workers)]


def launch_ranks(stage: str, arguments: Sequence[str], slots: Sequence[str]) -> int:
    """Runs `lape-ds <stage>` with these arguments as one rank on each slot of this machine.

    Returns:
        The ranks' exit code.

    Raises:
        UserError: This is one process in a Slurm job of several nodes.
    """
    _check_not_one_of_many(stage)
    job = Job({LOCAL: list(slots)}, COMMAND_LINE, [stage, *arguments], "127.0.0.1", free_port())
    return run_launchers([node_command(job, LOCAL)])


def _launch(stage: str, command: CommandLine) -> int:
    """The exit code of a stage on this machine or on the command line's hosts.

    The recipe is loaded here first: a mistake in it is told once, before any rank starts.
    """
    if stage != "train" and (slurm.is_rank() or not command.options):
        _as_command(stage, command)  # which itself is a rank, or starts them
    recipe = load_recipe(command.recipe, command.settings if stage == "eval" else command.overrides)
    if stage == "train" and slurm.is_rank():
        _as_rank(command)
    if "hostfile" not in command.options:
        _check_not_one_of_many(stage)
    hosts = chosen_hosts(command, num_ranks=recipe.launch.num_ranks)
    one_process = stage == "eval" and recipe.eval.backend == "vllm"
    if one_process:  # which may use the first host's GPUs
        hosts = dict(list(hosts.items())[:1])
    rest = [command.recipe, *command.overrides]
    job = Job(
        hosts,
        module=TRAINING if stage == "train" else COMMAND_LINE,
        arguments=rest if stage == "train" else [stage, *rest],
        master_addr=command.options.get("master_addr") or first_address(hosts),
        master_port=command.number("master_port") or free_port(),
        one_process=one_process,
    )
    if "hostfile" in command.options:
        return run_on_hosts(job)
    return run_launchers([node_command(job, LOCAL)])


def _check_not_one_of_many(stage: str) -> None:
    if slurm.num_nodes() > 1:
        raise UserError(
            f"this Slurm job has {slurm.num_nodes()} nodes and this command would use one: `srun launch/{stage}.sh …` in the "
            f"job, or `sbatch launch/slurm.sbatch --stage {stage} …` for all of it"
        )


def _check_no_options(command: CommandLine) -> None:
    """What srun or torchrun has decided is not decided again."""
    ours = [name for name in command.options if not name.startswith("master_")]
    if ours:
        raise UserError(
            f"--{ours[0]} has no use inside srun or torchrun, which has started the ranks; remove it"
        )


def _as_command(stage: str, command: CommandLine) -> NoReturn:
    """Becomes `lape-ds <stage>`, under this process's number."""
    _check_no_options(command)
    words = ["-m", COMMAND_LINE, stage, command.recipe, *command.overrides]
    os.execv(sys.executable, [sys.executable, *words])


def _as_rank(command: CommandLine) -> NoReturn:
    """Becomes the rank that this process is."""
    _check_no_options(command)
    options = [f"--{name}={value}" for name, value in command.options.items()]
    words = ["-u", "-m", TRAINING, *options, command.recipe, *command.overrides]
    os.execv(sys.executable, [sys.executable, *words])


def main(arguments: Sequence[str]) -> None:
    """`launch/<stage>.sh [launcher options] RECIPE [key=value …]`, behind the stage's name."""
    stage, *rest = arguments
    assert stage in _STAGES
    try:
        command = read_command_line(
            rest, script=f"launch/{stage}.sh", allowed=HOST_OPTIONS, passed_on=stage == "eval"
        )
        sys.exit(_launch(stage, command))
    except UserError as error:
        tell_error(error)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
