"""Lines between ranks: who may draw one, when, and that what is sent arrives as it was."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from types import SimpleNamespace

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from lape_ds.distributed import ranks
from lape_ds.evaluation.channels import Channel, open_channels, reach_first


@contextmanager
def line() -> Iterator[tuple[Channel, Channel]]:
    """Both ends, the first rank's before."""
    with ThreadPoolExecutor() as pool:
        opening = pool.submit(open_channels)
        with closing(reach_first()) as other:
            (mine,) = opening.result(timeout=5)
            with closing(mine):
                yield mine, other


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
        with closing(mine), closing(other.result()):
            assert mine.rank == 1
            other.result().send("here")
            assert mine.receive() == "here"


@pytest.mark.usefixtures("joined")
def test_strangers_hold_up_nobody_and_are_none_of_the_ranks():
    with ThreadPoolExecutor() as pool:
        opening = pool.submit(open_channels)
        port, token = ranks.published("evaluation").split()
        words = [b"", b"x", b"y" * 20, bytes.fromhex(token), bytes.fromhex(token) + (2).to_bytes(4)]
        with ExitStack() as stack:
            for word in words:
                address = ("127.0.0.1", int(port))
                stranger = stack.enter_context(socket.create_connection(address, timeout=5))
                stranger.sendall(word)
            with closing(reach_first()) as other:
                (mine,) = opening.result(timeout=5)
                with closing(mine):
                    mine.send("rank 1")
                    assert other.receive() == "rank 1"
            assert stranger.recv(1) == b"", "it is sent away"


@pytest.mark.usefixtures("joined")
def test_what_is_sent_arrives_as_it_was():
    message = {
        "numbers": [0.1, -1e-310, 1 / 3, math.inf, -math.inf, 3, True, None],
        "text": "Il-Ġimgħa \ud800 \x00\n" * 300_000,  # half a character, as a tokenizer may write it
    }
    with line() as (mine, other), ThreadPoolExecutor() as pool:
        sending = pool.submit(mine.send, message)
        assert other.receive() == message
        sending.result(timeout=5)
        mine.send(math.nan)
        assert math.isnan(other.receive())
        with pytest.raises(TypeError):
            mine.send({"not": {1}})
        mine.send([])
        assert other.receive() == [], "nothing of it was sent"
