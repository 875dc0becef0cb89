"""The lock of a run folder: what a second job hears, and what the second try of one job does."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lape_ds.distributed.run_lock import take_lock
from lape_ds.errors import UserError


def test_a_second_job_is_refused_at_once(tmp_path: Path) -> None:
    with (
        take_lock(tmp_path / "run", instead="leave"),
        pytest.raises(
            UserError, match=r"another process is at work in .*\(process \d+ on .*; wait for it, or sing"
        ),
    ):
        take_lock(tmp_path / "run", instead="sing")


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT"])
def test_a_job_that_is_started_again_waits_for_its_first_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "1")
    first = take_lock(tmp_path / "run", instead="leave")
    threading.Timer(0.5, first.close).start()
    take_lock(tmp_path / "run", instead="leave").close()
