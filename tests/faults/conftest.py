"""Jobs that a test can harm, and a disk that can be filled."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scheduler import Jobs
from tests.processes import rank_server


@pytest.fixture
def jobs(tiny_recipe: Path, tmp_path: Path) -> Iterator[Jobs]:
    found = Jobs(rank_server(), tiny_recipe, tmp_path)
    yield found
    found.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"a full and a read-only disk can't be had here, so they were not tested: {done.stderr}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
