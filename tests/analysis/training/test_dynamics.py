"""The course of a training from lines that a test has written; and the command's errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from lape_ds.analysis.analyze import analyze
from lape_ds.analysis.training.dynamics import Dynamics, read_dynamics
from lape_ds.analysis.training.results import analysis_dir
from lape_ds.analysis.training.run import open_runs
from lape_ds.cli import main
from tests.analysis.training.made_runs import make_run, read_analysis


def line(step: int, tokens: int, loss: float, **more: float) -> dict[str, Any]:
    return {"step": step, "tokens": tokens, "loss": loss, "learning_rate": 0.1, "gradient_norm": 2.0, **more}


def heldout(step: int, mt: float, en: float, ka: float) -> dict[str, Any]:
    return {"step": step, "heldout_bits_per_byte": {"mlt_Latn": mt, "eng_Latn": en, "kat_Geor": ka}}


LINES = [
    heldout(0, 2.0, 1.0, 1.5),
    line(1, 100, 5.0),
    line(
        2, 90, 4.0, update_norm=0.5, relative_update_norm=0.01
    ),  # logged from here on: the run was resumed with the switch
    heldout(2, 1.75, 1.25, 1.5),
    line(3, 110, 3.0, update_norm=0.25, relative_update_norm=0.005),
    heldout(3, 1.5, 1.25, 1.75),
]


def test_course_of_a_run(tiny_recipe: Path) -> None:
    run_dir = make_run(tiny_recipe, "dynamics/written", lines=LINES)
    analyze([run_dir], only=["dynamics"])
    (content,) = read_analysis(analysis_dir(run_dir), "dynamics")
    (read,) = content["inputs"]
    assert (read["path"], read["step"]) == ("metrics.jsonl", 3)
    assert content["steps"] == {
        "step": [1, 2, 3],
        "tokens": [100, 190, 300],
        "loss": [5.0, 4.0, 3.0],
        "learning_rate": [0.1, 0.1, 0.1],
        "gradient_norm": [2.0, 2.0, 2.0],
        "update_norm": [None, 0.5, 0.25],
        "relative_update_norm": [None, 0.01, 0.005],
    }
    assert content["heldout"]["tokens"] == [0, 190, 300]
    assert content["heldout"]["bits_per_byte"]["kat_Geor"] == [1.5, 1.5, 1.75]
    assert content["summary"] == {
        "steps": 3,
        "tokens": 300,
        "loss": [5.0, 3.0],
        "heldout_trained": [2.0, 1.5],
        "heldout_others": [1.25, 1.5],
        "median_gradient_norm": 2.0,
        "median_update_norm": 0.375,
        "median_relative_update_norm": 0.0075,
    }
    assert Dynamics.from_json(content) == read_dynamics(open_runs([run_dir])[0])
    table = parquet.read_table(analysis_dir(run_dir) / "dynamics.parquet").to_pylist()
    assert len(table) == 5 * 3 + 3 * 3
    assert {
        "run": "dynamics/written",
        "step": 3,
        "tokens": 300,
        "measure": "loss",
        "language": None,
        "value": 3.0,
    } in table
    picture = (analysis_dir(run_dir) / "dynamics.svg").read_text(encoding="utf-8")
    assert ">mlt_Latn -0.500</text>" in picture
    analyze([run_dir], only=["dynamics"])  # again, with the same pictures
    assert (analysis_dir(run_dir) / "dynamics.svg").read_text(encoding="utf-8") == picture


def test_several_runs_one_of_them_diverged(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lape_ds.analysis.training.results.FORMATS", ("svg",))  # drawing takes the time
    runs = [
        make_run(tiny_recipe, "dynamics/a/end", method="full", lines=LINES),
        make_run(
            tiny_recipe,
            "dynamics/b/end",
            method="full",
            lines=[*LINES[:3], {"step": 2, "diverged": "loss is nan"}],
        ),
    ]
    analyze(runs)
    folder = runs[0].parents[1] / "analysis"
    assert [content["name"] for content in read_analysis(folder, "dynamics")] == ["a/end", "b/end"]
    assert [content["diverged"] for content in read_analysis(folder, "dynamics")] == [None, "loss is nan"]
    out, err = capsys.readouterr()
    assert "(diverged)" in out
    assert (
        f"left out: updates of a/end: {runs[0]} has no exported model: run `lape-ds export {runs[0]}` first"
        in err
    )
    assert "left out: overlap of b/end" in err
    assert not (folder / "updates.json").exists()


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lape-ds", "analyze", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_mistakes_are_one_line_and_exit_2(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(make_run(tiny_recipe, "dynamics/wrong", lines=LINES))
    empty = str(make_run(tiny_recipe, "dynamics/empty"))
    for arguments, message in (
        (
            [run, "--only", "dynamic"],
            "--only dynamic: no such analysis; allowed: dynamics, updates, alignment,",
        ),
        ([run, "--only", "updates"], f"{run} has no exported model: run `lape-ds export {run}` first"),
        ([run, run], "a run is named twice"),
        ([run, "--output", str(tmp_path)], "one run's analyses go to"),
        ([empty, "--only", "dynamics"], "has no finished step in metrics.jsonl; train first"),
        ([str(tiny_recipe), "--only", "dynamics"], "is not the folder of a training"),
    ):
        assert run_command(monkeypatch, *arguments) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1


def test_results_are_read_and_drawn_without_torch() -> None:
    modules = ["dynamics", "updates", "trained_overlap"]
    names = [
        f"lape_ds.analysis.training.{name}"
        for name in ("results", *modules, *(f"{name}_picture" for name in modules))
    ]
    code = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
