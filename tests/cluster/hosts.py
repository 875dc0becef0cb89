"""Starts stages on the loopback's hosts as users do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.processes import REPO


def start_on_hosts(
    stage: str, hostfile: Path, recipe: Path, *settings: str, env: Mapping[str, str]
) -> subprocess.Popen[str]:
    command = [str(REPO / "launch" / f"{stage}.sh"), "--hostfile", str(hostfile), str(recipe), *settings]
    return subprocess.Popen(
        command,
        cwd=REPO,
        env={**env, "PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_on_hosts(stage: str, recipe: Path, *settings: str, env: Mapping[str, str]) -> str:
    process = start_on_hosts(stage, recipe.parent / "hosts", recipe, *settings, env=env)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    return printed
