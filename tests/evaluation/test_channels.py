"""Lines between ranks: who may draw one, when, and that what is sent arrives as it was."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from lape_ds.evaluation.channels import open_channels, reach_first
from lape_ds.training import ranks


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks in this process, which have joined within a tenth of a second."""
    store = TCPStore(
        "127.0.0.1",
        0,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=0.1),
    )
    monkeypatch.setattr(ranks, "_heartbeat", SimpleNamespace(store=store))
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("joined")
def test_the_first_rank_may_prepare_for_longer_than_ranks_have_to_come():
    with ThreadPoolExecutor() as pool:
        other = pool.submit(reach_first)
        time.sleep(0.5)
        assert not other.done(), "it waits, for there is nothing to reach"
        (mine,) = open_channels()
        assert mine.rank == 1
        other.result().send("here")
        assert mine.receive() == "here"
