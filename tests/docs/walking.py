"""Runs the docs' commands, one after the other in one folder, as a reader would.

Commands of ours run in this process, by the very functions that the console script and launch/*.sh call; where these would
start ranks, one is forked from tests/rank_server.py, which saves its imports. Of what is not on every machine (sbatch, pdsh,
git, a hub) all is done but the program itself: its options are looked up, and what it would start is run here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lape_ds import cli
from lape_ds.distributed import launch
from lape_ds.distributed.launchers import batch, running
from lape_ds.distributed.launchers.job import COMMAND_LINE, Job
from lape_ds.training.plan import command as plan_command
from lape_ds.training.plan import report as plan_report
from tests.docs.blocks import Command
from tests.hub import serving
from tests.hub_uploads import Account
from tests.processes import REPO, run_ranks

_SHELL = ("ls", "mkdir", "cp", "printf")  # harmless, and the same everywhere
# Source: sbatch(1), scancel(1) of Slurm 25.11.
_SBATCH = ("--nodes", "--gpus-per-node", "--ntasks-per-node", "--time", "--array", "--dependency")
_SCANCEL = ("--signal=USR1",)


class Walk:
    """A folder in which docs are followed.

    Args:
        folder: With recipes and text of the names that the docs use.
        monkeypatch: Of the test.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._patch = folder, monkeypatch
        self._modules_run = 0
        monkeypatch.chdir(folder)
        monkeypatch.setattr(launch, "node_command", lambda job, host: job)
        monkeypatch.setattr(launch, "run_launchers", self._run_launchers)
        monkeypatch.setattr(launch, "run_on_hosts", self._run_job)
        monkeypatch.setattr(running, "run_launchers", self._run_launchers)
        # Of the other methods the plan costs seconds each, and says the same of every model.
        for module in (plan_command, plan_report):
            monkeypatch.setattr(module, "METHODS", ("subnetwork",))
        expired = subprocess.TimeoutExpired
        monkeypatch.setattr(batch, "subprocess", SimpleNamespace(Popen=self._step, TimeoutExpired=expired))

    def run(self, command: Command) -> None:
        """Runs a command; whatever it is, it must end well."""
        name, *arguments = command.words
        with self._variables(command.environment):
            if name == "lape-ds":
                self._main(cli.main, ["lape-ds", *arguments])
            elif name.startswith("launch/"):
                self._script(name, arguments)
            elif name == "sbatch":
                self._sbatch(arguments)
            elif name in _SHELL:
                subprocess.run(["bash", "-euc", command.text], cwd=self._folder, check=True)
            elif name == "hf":
                self._hf(arguments)
            else:
                _check(name, arguments)

    def _main(self, main: Any, argv: Sequence[str]) -> None:
        self._patch.setattr(sys, "argv", list(argv))
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        assert not code, f"exit code {code}"

    def _script(self, name: str, arguments: list[str]) -> None:
        script = REPO / name
        assert os.access(script, os.X_OK), f"no script {name}"
        started = re.search(r"-m lape_ds\.distributed\.launch (\w+) ", script.read_text(encoding="utf-8"))
        assert started is not None
        self._main(lambda: launch.main([started[1], *arguments]), [name])

    def _run_launchers(self, jobs: Sequence[Job], **_: Any) -> int:
        for job in jobs:
            self._run_job(job)
        return 0

    def _run_job(self, job: Job) -> int:
        self._module(job.module, job.arguments)
        return 0

    def _module(self, module: str, arguments: Sequence[str]) -> None:
        """One rank, however many there would be: how ranks share the work is tested elsewhere."""
        self._modules_run += 1
        if module == COMMAND_LINE:
            self._main(cli.main, ["lape-ds", *arguments])
        else:
            run_ranks("tests.docs.in_folder", [str(self._folder), module, *arguments], world_size=1)

    def _sbatch(self, arguments: list[str]) -> None:
        options: dict[str, str] = {}
        while arguments[0].startswith("-"):
            option, _, value = arguments.pop(0).partition("=")
            assert option in _SBATCH, f"no option {option} of sbatch is known here"
            options[option] = value
        script, *rest = arguments
        assert (REPO / script).is_file(), f"no script {script}"
        first, _, last = options.get("--array", "0").partition("-")
        for number in range(int(first), int(last or first) + 1):
            told = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": options.get("--nodes", "1")}
            told |= {"SLURM_GPUS_ON_NODE": options.get("--gpus-per-node", "0"), "SLURM_CPUS_ON_NODE": "64"}
            if "--array" in options:
                told |= {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_TASK_MIN": first}
                told |= {"SLURM_ARRAY_TASK_MAX": last, "SLURM_ARRAY_TASK_COUNT": str(int(last) + 1)}
            with self._variables(told):
                started = self._modules_run
                assert batch.run_batch(rest) == 0
                assert self._modules_run == started + 1

    def _step(self, srun: list[str], **_: Any) -> _Ended:
        """What srun would start, without what Slurm would tell it."""
        module, *arguments = srun[srun.index("-m") + 1 :]
        assert srun[0] == "srun"
        with self._variables({name: None for name in os.environ if name.startswith("SLURM_")}):
            arguments = [word for word in arguments if not word.startswith("--master_port=")]
            self._module(module, arguments)
        return _Ended()

    def _hf(self, arguments: list[str]) -> None:
        """To a hub on the loopback, of which the docs' USER has an account."""
        (self._folder / "hub-root" / "models").mkdir(parents=True)
        with serving(self._folder / "hub-root", accounts={"hf_token": Account("USER")}) as hub:
            client = str(Path(sys.executable).with_name("hf"))
            environment = hub.environment(self._folder / "home", HF_TOKEN="hf_token")
            subprocess.run([client, *arguments], env=environment, cwd=self._folder, check=True)
            assert any(line.startswith("POST") and "/commit/" in line for line in hub.asked)

    @contextmanager
    def _variables(self, variables: dict[str, Any]) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                if value is None:
                    patch.delenv(name)
                else:
                    patch.setenv(name, value)
            yield


class _Ended:
    """A step that has ended well."""

    def wait(self, timeout: float) -> int:
        return 0


def _check(name: str, arguments: list[str]) -> None:
    """What can be said of a command without running it."""
    if name == "make":
        rules = (REPO / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(rf"^{re.escape(rule)}:", rules, re.MULTILINE) for rule in arguments)
    elif name == "scancel":
        assert arguments[-1] == "JOB"
        assert all(option in _SCANCEL for option in arguments[:-1])
    elif name == "git":
        assert (arguments[0], len(arguments)) == ("clone", 3)
    elif name == "source":
        assert arguments == [".venv/bin/activate"]
    else:
        assert name in ("cd",), f"the docs' tests know no command {name}"
