import io
import json
from pathlib import Path

import pytest

from lape_ds import runlog
from lape_ds.recipe import load_recipe

ROOT = Path(__file__).parent.parent


def test_run_json_tells_what_decided_the_numbers(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml", ["seed=7"])
    runlog.write_run_json(tmp_path, recipe, {"stage": "train"})
    content = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert content["seeds"] == {"seed": 7, "random_seed": 0}
    assert content["stage"] == "train"
    assert content["versions"]["torch"]
    assert content["recipe"]["languages"]["target"] == "mlt_Latn"


def test_progress_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))  # every look at the clock is 4 s later
    monkeypatch.setattr(runlog.time, "monotonic", lambda: float(next(clock)))
    stream = io.StringIO()
    with runlog.Progress("Packing", total=40, unit="tokens", enabled=True, stream=stream) as bar:
        for _ in range(40):
            bar.advance(note="fine")
    lines = stream.getvalue().splitlines()
    assert lines[-1].startswith("Packing: 40/40 tokens (100 %)")
    assert lines[-1].endswith("taken, fine")
    assert 2 < len(lines) < 40
    assert "left" in lines[0]


def test_progress_only_on_the_first_rank(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert list(runlog.progress(3, "Counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert list(runlog.progress(["a"], "Counting")) == ["a"]
    assert capsys.readouterr().err.startswith("Counting: 1/1 (100 %)")


@pytest.mark.parametrize(("seconds", "lines"), [(1, 1), (9, 1), (10, 2), (12, 2)])
def test_last_line_is_printed_once(monkeypatch: pytest.MonkeyPatch, seconds: int, lines: int) -> None:
    """Also when the last step falls on the ten-second mark, where a line is due anyway."""
    clock = [0.0]
    monkeypatch.setattr(runlog.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with runlog.Progress("Packing", total=2, unit="tokens", enabled=True, stream=stream) as bar:
        for _ in range(2):
            clock[0] += seconds
            bar.advance()
    printed = stream.getvalue().splitlines()
    assert len(printed) == len(set(printed)) == lines
    assert printed[-1].startswith("Packing: 2/2 tokens (100 %)")
