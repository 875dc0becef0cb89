"""Before the GPUs are booked: real processes against a hub on the loopback."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.evaluation.published import write_arc, write_mmlu, write_suite
from tests.hub import Hub, serving
from tests.processes import REPO

ARC, MODEL, TOKEN = "allenai/ai2_arc", "org/tiny", "hf_known"
FILE = re.compile(r"GET .*/resolve/.*")


class Done(NamedTuple):
    code: int
    out: str
    err: str
    asked: list[str]  # of the hub


class Client:
    """A machine with a cache of its own that evaluates what the hub has."""

    def __init__(self, work: Path, hub: Hub):
        self.work, self.hub = work, hub
        self.suites = {name: write_suite(work / f"{name}.yaml", *titles) for name, titles in SUITES.items()}

    def eval(self, suite: str, *options: str, **environment: str) -> Done:
        num_asked = len(self.hub.asked)
        command = [sys.executable, "-m", "lape_ds.cli", "eval", MODEL, "--suite", str(self.suites[suite])]
        command += ["--languages", "eng", "--output", str(self.work / "out"), *options]
        done = subprocess.run(
            command,
            env=self.hub.environment(self.work / "home", OMP_NUM_THREADS="1", **environment),
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=250,
        )
        return Done(done.returncode, done.stdout, done.stderr, self.hub.asked[num_asked:])


SUITES = {"three": ("mmlu", "arc", "wikitext"), "two": ("mmlu", "arc")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Done]:
    """One after the other, on one machine."""
    work = tmp_path_factory.mktemp("prefetch")
    shutil.copytree(model_folder, work / "hub" / "models" / MODEL)
    write_mmlu(work / "hub")
    write_arc(work / "hub")
    granted = frozenset([TOKEN])
    with serving(work / "hub", gated={ARC: granted, MODEL: granted}) as hub:
        client = Client(work, hub)
        return {
            "stranger": client.eval("three", "--prefetch"),
            "known": client.eval("two", "--prefetch", HF_TOKEN=TOKEN),
            "offline": client.eval("two", HF_HUB_OFFLINE="1"),
        }


def test_a_failure_is_told_in_one_line_and_the_rest_goes_on(runs: dict[str, Done]):
    done = runs["stranger"]
    assert done.code == 2, done.err
    model, mmlu, arc, wikitext = done.out.splitlines()
    assert re.fullmatch(rf"model tiny \({MODEL}\): MISSING, .*gated.*https://huggingface.co/{MODEL}, then log in.*", model)
    assert re.fullmatch(r"data of mmlu_anatomy_eng_Latn: fetched [\d.]+ kB", mmlu)
    assert re.fullmatch(
        rf"data of arc_easy_eng_Latn: MISSING, .*gated.*https://huggingface.co/datasets/{ARC} and log in.*HF_TOKEN.*", arc
    )
    assert re.fullmatch(r"data of wikitext_eng_Latn: MISSING, .*EleutherAI/wikitext_document_level.*", wikitext)
    assert done.err == (
        "error: 3 of what this evaluation needs are missing: mend what is told above and give the command again\n"
    )


def test_what_is_there_is_not_fetched_a_second_time(runs: dict[str, Done]):
    done = runs["known"]
    assert done.code == 0, done.out + done.err
    model, mmlu, arc, last = done.out.splitlines()
    assert re.fullmatch(rf"model tiny \({MODEL}\): fetched [\d.]+ kB", model)
    assert mmlu == "data of mmlu_anatomy_eng_Latn: there already"
    assert re.fullmatch(r"data of arc_easy_eng_Latn: fetched [\d.]+ kB", arc)
    assert re.fullmatch(r"all is there; set HF_HUB_OFFLINE=1 to evaluate without a network, .*HF_HOME \(.*/home\) is seen", last)
    assert done.err == ""
    files = [line for line in done.asked if FILE.fullmatch(line)]
    assert len(files) == len(set(files))
    assert not [line for line in files if "mmlu" in line]


def test_the_evaluation_then_asks_for_nothing(runs: dict[str, Done]):
    done = runs["offline"]
    assert done.code == 0, done.out + done.err
    assert done.asked == []
    assert "mmlu" in done.out
    assert "arc" in done.out
