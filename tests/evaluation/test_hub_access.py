"""A hub that does not answer costs one request and one line, not half a minute for each data set."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import datasets.config
import pytest
from huggingface_hub import constants

from lape_ds.evaluation.harness import Measured, _build
from lape_ds.evaluation.hub_access import ask_hub
from lape_ds.evaluation.suites import load_suite, plan


@dataclass
class _Server:
    url: str
    asked: list[bytes] = field(default_factory=list)


@contextmanager
def _serving(answer: bytes | None) -> Iterator[_Server]:
    """Sends an answer to every connection; None: hears it and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server, open_ones = _Server(f"http://127.0.0.1:{listener.getsockname()[1]}"), []

        def serve() -> None:
            while True:
                try:
                    one, _ = listener.accept()
                except OSError:
                    return
                open_ones.append(one)
                server.asked.append(one.recv(4096))
                if answer is not None:
                    one.sendall(answer)
                    one.close()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for one in open_ones:
                one.close()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a process that was started without HF_HUB_OFFLINE and has not asked yet."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.5)
    ask_hub.cache_clear()
    yield
    ask_hub.cache_clear()


@pytest.mark.parametrize(
    "answer", [None, b"", b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]
)
def test_a_silent_hub_is_asked_once_and_told_once(
    answer: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
):
    """Of five tasks three need it, two of them the same data set."""
    monolingual, quickstart = load_suite("monolingual"), load_suite("quickstart")
    wanted = ("flores_bits_per_byte", "belebele")
    planned = [one for one in plan(monolingual, ["mlt", "ekk"]) if one.title in wanted]
    planned += [one for one in plan(quickstart, ["mlt"]) if one.title in ("topic", "cloze")]
    measured = Measured({"base": {}})
    with _serving(answer) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        tasks = _build(planned, {}, measured)
        assert len(server.asked) == 1
    assert list(tasks) == ["cldr_topic_mlt_Latn", "cldr_cloze_mlt_Latn"]
    assert caplog.text.count("the hub does not answer at http://127.0.0.1") == 1
    flores, belebele = capsys.readouterr().err.splitlines()
    assert "flores_bits_per_byte_mlt_Latn and 1 more of its tasks: " in flores
    assert "belebele_mlt_Latn and 1 more of its tasks: " in belebele
    for line in (flores, belebele):
        assert (
            "(the hub does not answer, and it is not in the cache): check the network, or give local" in line
        )
        assert "HF_HUB_OFFLINE" not in line


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch):
    with _serving(b"HTTP/1.1 404 None\r\nContent-Length: 0\r\nConnection: close\r\n\r\n") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        assert ask_hub()
        assert ask_hub()
        assert len(server.asked) == 1
    assert not constants.is_offline_mode()
