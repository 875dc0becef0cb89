"""Files that a network file system shows late, or shows although they are gone."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lape_ds.errors import UserError
from lape_ds.identification import files
from lape_ds.identification.files import CountFiles
from tests.neurons.test_merging import of_part


def test_waits_for_exactly_what_a_rank_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older file of the same name is not it; a bound ends the waiting."""
    monkeypatch.setattr(files, "_SECONDS_TO_SEE", 0.3)
    there, here = (CountFiles(tmp_path / name, with_sums=False) for name in ("there", "here"))
    older = of_part("mlt_Latn", 0)
    newer = older.merge(of_part("mlt_Latn", 1))
    newer.save(there.of_language("mlt_Latn"))
    written = [there.written(there.of_language("mlt_Latn"))]
    assert written == [("counts/mlt_Latn.safetensors", 120)]
    with pytest.raises(UserError, match=r"mlt_Latn.safetensors, which rank 1 on b has written, is not seen"):
        here.see(written, "rank 1 on b")
    older.save(here.of_language("mlt_Latn"))
    with pytest.raises(UserError, match="is not seen"):
        here.see(written, "rank 1 on b")
    monkeypatch.setattr(files, "_SECONDS_TO_SEE", 60.0)
    late = threading.Timer(0.2, lambda: newer.save(here.of_language("mlt_Latn")))
    late.start()
    here.see(written, "rank 1 on b")
    assert here.written(here.of_language("mlt_Latn")) == written[0]
    late.join()


def test_a_listed_unit_that_is_gone_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text: Any = SimpleNamespace(language="mlt_Latn")
    monkeypatch.setattr(Path, "glob", lambda *_: iter([tmp_path / "units" / "mlt_Latn" / "0-5.safetensors"]))
    found = CountFiles(tmp_path, with_sums=False)._waiting(text)  # pyright: ignore[reportPrivateUsage]
    assert found == []
    assert not caplog.messages
