"""One server of ranks for all fault tests, and a disk that can be filled."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scheduler import Jobs, RankServer


@pytest.fixture(scope="session")
def rank_server() -> Iterator[RankServer]:
    server = RankServer()
    yield server
    server.close()


@pytest.fixture
def jobs(rank_server: RankServer, tiny_recipe: Path, tmp_path: Path) -> Iterator[Jobs]:
    found = Jobs(rank_server, tiny_recipe, tmp_path)
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
