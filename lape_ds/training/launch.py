"""Starts the ranks: the shell half of `launch/train.sh`, and `lape-ds train`.

Before the DeepSpeed launcher, which starts `launch/train.sh` once per rank with Python.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import psutil
import torch

from lape_ds.errors import UserError
from lape_ds.recipe import load_recipe
from lape_ds.resources import asset
from lape_ds.training.stopping import STOPPED

_SECONDS_BETWEEN_LOOKS = 0.1


def launch_training(
    recipe_path: str, overrides: Sequence[str], *, launcher_options: Sequence[str] = ()
) -> None:
    """Runs a training to its end through the DeepSpeed launcher.

    The recipe is loaded here first: a mistake in it is told once, before any rank starts.

    Args:
        recipe_path: The recipe.
        overrides: `key=value`.
        launcher_options: For the launcher itself, e.g. `--hostfile hosts`.

    Raises:
        UserError: The recipe is not valid.
        SystemExit: With the ranks' exit code, if it is not 0.
    """
    recipe = load_recipe(recipe_path, overrides)
    options = [*_ranks_option(recipe.launch.num_ranks, launcher_options), *launcher_options]
    code = run_launchers([launcher_command(options, [recipe_path, *overrides])])
    if code:
        raise SystemExit(code)


def launcher_command(options: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The command that starts ranks of `launch/train.sh` with these arguments, on a port of their own."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "critical"]
    return [*launcher, *_port_option(options), *options, str(asset("launch/train.sh")), *arguments]


def run_launchers(
    commands: Sequence[Sequence[str]],
    *,
    logs: Sequence[Path] | None = None,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[], None] = lambda: None,
) -> int:
    """Runs launchers side by side to their end; if one fails, the others are stopped.

    SIGINT, SIGTERM, SIGHUP and SIGUSR1 (Slurm's warning) are passed on to the ranks alone, which keep a checkpoint and end, and
    the launcher with them. It would itself die of them at once and leave its ranks behind, so it runs in a session of its
    own, out of the reach of Ctrl-C.

    Args:
        commands: Of `launcher_command`.
        logs: Where each one's output goes; None: to ours.
        environment: What is added to the ranks' environment.
        watch: Called several times a second meanwhile.

    Returns:
        The exit code of the first that failed, else 0; `STOPPED` after a signal.
    """
    launchers: list[subprocess.Popen[bytes]] = []
    with ExitStack() as files:
        for number, command in enumerate(commands):
            output = None if logs is None else files.enter_context(logs[number].open("wb"))
            launchers.append(
                subprocess.Popen(
                    command,
                    env=_environment() | dict(environment or {}),
                    start_new_session=True,
                    stdout=output,
                    stderr=output,
                )
            )
    with _passing_signals_on(launchers) as stopping:
        failed = 0  # what the first one to fail ended with; the others are stopped then, and end with something else
        while None in (codes := [launcher.poll() for launcher in launchers]):
            if not failed and (failed := next((code for code in codes if code), 0)):
                _stop_ranks(launchers)
            watch()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return STOPPED if stopping else failed or next((code for code in codes if code), 0)


@contextmanager
def _passing_signals_on(launchers: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Gives the signals that have come, a list that fills while the launchers run."""
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        _stop_ranks(launchers)

    wanted = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup
    ]
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_ranks(launchers: Sequence[subprocess.Popen[bytes]]) -> None:
    for launcher in launchers:
        try:
            runner = psutil.Process(launcher.pid)
            on_this_node = runner.children()
            ranks = [rank for one in on_this_node for rank in one.children()]
            for process in ranks or [*on_this_node, runner]:
                process.terminate()
        except psutil.NoSuchProcess:  # has just ended
            pass


def main(arguments: Sequence[str]) -> None:
    """`launch/train.sh [launcher options] RECIPE [key=value …]`."""
    where = next((i for i, argument in enumerate(arguments) if _is_recipe(argument)), None)
    try:
        if where is None:
            raise UserError(
                "which recipe? usage: launch/train.sh [launcher options] RECIPE.yaml [key=value …]"
            )
        launch_training(arguments[where], arguments[where + 1 :], launcher_options=arguments[:where])
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _is_recipe(argument: str) -> bool:
    return argument.endswith((".yaml", ".yml")) or (Path(argument) / "recipe.yaml").exists()


def _ranks_option(num_ranks: int | None, launcher_options: Sequence[str]) -> list[str]:
    """As many ranks as the recipe says, but never two on one GPU: the same recipe runs on a laptop and on a server."""
    asked = ("--num_", "--include", "--exclude", "--hostfile")
    if num_ranks is None or any(option.startswith(asked) for option in launcher_options):
        return []
    if not torch.cuda.is_available():
        return ["--num_gpus", str(num_ranks)]
    num_ranks = min(num_ranks, torch.cuda.device_count())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return ["--num_gpus", str(num_ranks)]
    # With --num_gpus the launcher forgets the variable and takes GPU 0 on, which may be somebody else's.
    return ["--include", f"localhost:{','.join(visible.split(',')[:num_ranks])}"]


def options_of_workers(num_workers: int, num_ranks: int | None) -> list[list[str]]:
    """Launcher options of trainings side by side: ranks of their own, on GPUs of their own.

    Fewer workers than asked for where there are not GPUs enough: the same recipe runs on a laptop and on a server.
    """
    if not torch.cuda.is_available():
        return [["--num_gpus", str(num_ranks or 1)]] * num_workers
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    num_workers = min(num_workers, max(1, len(gpus) // (num_ranks or 1)))
    each = min(num_ranks or len(gpus), len(gpus) // num_workers)
    return [
        ["--include", f"localhost:{','.join(gpus[number * each : (number + 1) * each])}"]
        for number in range(num_workers)
    ]


def _port_option(launcher_options: Sequence[str]) -> list[str]:
    """A free port on this machine, so that two trainings do not meet; on several hosts the launcher's own."""
    if any(option.startswith(("--master_", "--hostfile")) for option in launcher_options):
        return []
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return ["--master_port", str(probe.getsockname()[1])]


def _environment() -> dict[str, str]:
    """The ranks import lape_ds also where only its checkout is there, and DeepSpeed need not guess what it runs on."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return (
        {"DS_ACCELERATOR": "cuda" if torch.cuda.is_available() else "cpu"} | os.environ | {"PYTHONPATH": path}
    )


if __name__ == "__main__":
    main(sys.argv[1:])
