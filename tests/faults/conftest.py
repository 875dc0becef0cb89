"""One server of ranks for all fault tests, and jobs on it."""

from __future__ import annotations

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
