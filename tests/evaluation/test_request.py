"""What is asked is asked of ranks in the same words, by whichever way they are started."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from lape_ds.cli_eval import add_eval_commands
from lape_ds.evaluation import request
from lape_ds.evaluation.request import EvalRequest
from tests.evaluation.eval_ranks import Job, command_line
from tests.processes import REPO

ASKED = EvalRequest(
    targets=["r.yaml", "runs/a"],
    overrides=["eval.limit=2"],
    suites=["general", "own.yaml"],
    languages=["mt", "en"],
    output_dir=Path("out"),
    batch_size=3,
    limit=4,
    backend="hf",
    dtype="bfloat16",
)


@pytest.mark.parametrize("asked", [ASKED, EvalRequest(["r.yaml"])])
def test_words_ask_for_the_same(asked: EvalRequest, monkeypatch: pytest.MonkeyPatch):
    heard: list[EvalRequest] = []
    monkeypatch.setattr(request, "run_evaluation", lambda one: heard.append(one) or 0)
    app = Typer()
    add_eval_commands(app)
    done = CliRunner().invoke(app, ["eval", *asked.words()])
    assert done.exit_code == 0, done.output
    (found,) = heard
    assert {name: value for name, value in vars(found).items() if value} == {
        name: value for name, value in vars(asked).items() if value
    }


def test_a_mistake_is_told_by_one_rank(model_folder: Path, tmp_path: Path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((model_folder / name).read_bytes())
    options = ["--languages", "mlt", "--output", str(tmp_path / "out")]
    for number, (arguments, expected) in enumerate(
        [
            ([str(bare), *options], "the tokenizer there cannot be loaded"),
            (["nothing.yaml"], "nothing.yaml"),
            ([str(model_folder), *options, "--suite", "quikstart"], "did you mean 'quickstart'"),
            ([str(model_folder), "--languages", "Maltees", *options[2:]], "Maltees"),
            ([str(model_folder), "--no-such-option"], "--no-such-option"),
        ]
    ):
        job = Job(tmp_path / str(number)).start(command_line, "eval", *arguments, world_size=2)
        assert job.end() == [2, 2], job.output
        (line,) = job.errors
        assert expected in line


def test_the_script_takes_what_the_command_takes(tmp_path: Path):
    """Without hosts it becomes the command."""
    command = [str(REPO / "launch" / "eval.sh"), "a-model", "--languages", "mlt"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: models alone say neither language nor output folder")
