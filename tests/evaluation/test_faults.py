"""An evaluation killed, stopped, or without room on the disk: one line, finished tasks kept, the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lape_ds.errors import UserError
from lape_ds.evaluation.command import evaluate_command
from lape_ds.evaluation.harness import evaluate
from lape_ds.evaluation.request import EvalRequest
from lape_ds.evaluation.suites import load_suite
from tests.evaluation.eval_ranks import Job, command_line
from tests.processes import REPO

RECIPE = """\
name: tiny
output_dir: {output}
languages: {{target: mlt, identify: [eng, mlt]}}
model: {{path: {model}, dtype: float32}}
corpus: {{source: {{kind: cldr, records: 10}}}}
"""


MALTESE = ["--languages", "mlt", "--limit", "60"]  # four tasks


@pytest.fixture
def recipe(tmp_path: Path, model_folder: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(output=tmp_path / "out", model=model_folder), encoding="utf-8")
    return path


def results(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("base/*.json")}


def test_a_rank_killed_in_the_middle_and_the_same_command_on_other_ranks(recipe: Path, tmp_path: Path):
    """The rest is measured by two ranks that `lape-ds eval` starts; all is as one rank measures it with another batch size."""
    folder = tmp_path / "out" / "eval"
    job = Job(tmp_path / "job").start(
        command_line, "eval", str(recipe), "--batch-size", "1", *MALTESE, world_size=2
    )
    job.wait_until(lambda: bool(list(folder.glob("base/*.json"))))
    job.processes[1].kill()
    assert job.end() == [1, -signal.SIGKILL]
    (line,) = job.errors
    assert line.startswith("error: rank 1 on ")
    assert "has ended without a word: it was killed" in line
    kept = results(folder)
    assert 0 < len(kept) < 4
    written_at = {name: (folder / "base" / f"{name}.json").stat().st_mtime_ns for name in kept}

    command = [sys.executable, "-m", "lape_ds.cli", "eval", str(recipe), "launch.num_ranks=2", *MALTESE]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quickstart suite" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("evaluating base: ")
    assert {name: (folder / "base" / f"{name}.json").stat().st_mtime_ns for name in kept} == written_at

    alone = tmp_path / "alone"
    evaluate_command(EvalRequest([str(recipe)], languages=["mlt"], limit=60, batch_size=7, output_dir=alone))
    found, expected = results(folder), results(alone)
    assert found.keys() == expected.keys()
    for name, result in expected.items():
        for key in ("requests_sha256", "settings", "num_documents"):
            assert found[name][key] == result[key]
        for metric, score in result["scores"].items():
            assert found[name]["scores"][metric]["value"] == pytest.approx(score["value"], rel=1e-5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop(number: signal.Signals, recipe: Path, tmp_path: Path):
    folder = tmp_path / "out" / "eval"
    job = Job(tmp_path / "job").start(command_line, "eval", str(recipe), "--batch-size", "1", "--limit", "60")
    job.wait_until(lambda: bool(list(folder.glob("base/*.json"))))
    os.kill(job.processes[0].pid or 0, number)
    assert job.end() == [130]
    assert job.output.splitlines()[-1] == (
        "stopped during the evaluation; finished tasks are kept, the same command goes on"
    )
    assert 0 < len(results(folder)) < 7


def test_disk_full(model_folder: Path, small_disk: Path, capfd: pytest.CaptureFixture[str]):
    suite = load_suite("quickstart")

    def run(*titles: str) -> None:
        part = suite.model_copy(update={"tasks": {title: suite.tasks[title] for title in titles}})
        evaluate(
            {"base": model_folder}, suite=part, languages=["mlt"], output_dir=small_disk / "eval", limit=4
        )

    run("cloze")
    kept = results(small_disk / "eval")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(UserError) as caught:
        run("cloze", "topic")
    text = str(caught.value)
    assert text.startswith(f"cannot write {small_disk}/eval/base/samples/cldr_topic_mlt_Latn.jsonl: ")
    assert "No space left on device" in text
    assert (
        "make room or mend the folder, then give the same command again (finished tasks are as they were)"
        in text
    )
    assert results(small_disk / "eval") == kept
    assert not [path for path in (small_disk / "eval").rglob("*") if path.name.startswith(".")]
    filler.unlink()
    run("cloze", "topic")
    assert len(results(small_disk / "eval")) == 2
