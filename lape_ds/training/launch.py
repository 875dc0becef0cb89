"""Starts the ranks: the shell half of `launch/train.sh`, and `lape-ds train`.

Before the DeepSpeed launcher, which starts `launch/train.sh` once per rank with Python.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import psutil
import torch

from lape_ds.errors import UserError
from lape_ds.recipe import load_recipe
from lape_ds.resources import asset
from lape_ds.training.main import STOPPED


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
    options = [
        *_ranks_option(recipe.launch.num_ranks, launcher_options),
        *_port_option(launcher_options),
        *launcher_options,
    ]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "critical", *options]
    command = [*launcher, str(asset("launch/train.sh")), recipe_path, *overrides]
    code = _run(command)
    if code:
        raise SystemExit(code)


def _run(command: Sequence[str]) -> int:
    """Runs the launcher to its end; returns its exit code, or `STOPPED` after SIGINT, SIGTERM or SIGHUP.

    These are passed on to the ranks alone, which keep a checkpoint and end, and the launcher with them. It would itself die of
    them at once and leave its ranks behind, so it runs in a session of its own, out of the reach of Ctrl-C.
    """
    launcher = subprocess.Popen(command, env=_environment(), start_new_session=True)
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        try:
            runner = psutil.Process(launcher.pid)
            on_this_node = runner.children()
            ranks = [rank for one in on_this_node for rank in one.children()]
            for process in ranks or [*on_this_node, runner]:
                process.terminate()
        except psutil.NoSuchProcess:  # has just ended
            pass

    wanted = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # nohup
    ]
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        code = launcher.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return STOPPED if stopping else code


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
