"""Jobs that a test can harm."""

from __future__ import annotations

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
