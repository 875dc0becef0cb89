"""What a suite says wrong of the harness's tasks is found by their YAML, before anything is measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lape_ds.cli_eval import suites
from lape_ds.errors import UserError
from lape_ds.evaluation.checking import check_planned, check_suite
from lape_ds.evaluation.harness_tasks import find_task, metric_directions
from lape_ds.evaluation.suites import load_suite, plan
from lape_ds.evaluation.tasks import build_task

SUITE = """\
name: own
tasks:
  topic: {task: cldr_topik, metric: acc, direction: higher, languages: [mlt]}
  cloze: {task: cldr_cloze, metadata: {language: "{code}"}, metric: acc_norm, direction: higher}
  bits: {task: cldr_bits_per_byte, metadata: {language: "{code}"}, metric: bits_per_byte, direction: higher}
  flores: {task: flores_from_english, metadata: {language: "{flores}"}, metric: spbleu, direction: higher}
  belebele: {task: "belebel_{belebele}", metric: acc, direction: higher}
  xnli: {task: "xnli_{iso639_1}", metric: acc, direction: higher}
  xcopa: {task: "xcopa_{iso639_1}", metric: acc, direction: higher, languages: [et, mt]}
"""
FAULTS = [
    r"suite task 'topic': no task 'cldr_topik', did you mean 'cldr_topic'\?",
    r"suite task 'cloze': cldr_cloze has no metric 'acc_norm' but acc, acc_bytes",
    r"suite task 'bits': direction 'higher' is the wrong way round for bits_per_byte",
    r"suite task 'belebele': no task 'belebel_\w+', did you mean 'belebele_\w+'\?",
    r"suite task 'xcopa': no task 'xcopa_mt'",
]


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(SUITE, encoding="utf-8")
    return path


def test_every_fault_is_a_line(suite_file: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UserError) as caught:
        suites(str(suite_file))
    said = [*capsys.readouterr().err.splitlines(), f"error: {caught.value}"]
    for line, fault in zip(said, FAULTS, strict=True):
        assert re.match(f"error: {fault}", line), line


def test_of_some_languages_only_what_is_wrong_in_them(suite_file: Path):
    planned = plan(load_suite(suite_file), ["ekk"])
    check_planned(one for one in planned if one.title in ("flores", "xcopa"))
    with pytest.raises(UserError, match=r"^suite task 'xnli': no task 'xnli_et'"):
        check_planned(one for one in planned if one.title in ("flores", "xnli"))


def test_a_placeholder_that_fits_some_languages_only_is_said(tmp_path: Path):
    path = tmp_path / "own.yaml"
    path.write_text(SUITE.splitlines()[0] + "\ntasks:\n" + SUITE.splitlines()[-2] + "\n", encoding="utf-8")
    (note,) = check_suite(load_suite(path))
    assert re.match(r"xnli: lm-eval has xnli_\{iso639_1\} in \d\d of 185 languages, not in aar_Latn,", note)


def test_metrics_by_the_yaml_are_those_of_the_built_task():
    for planned in plan(load_suite("quickstart"), ["mlt"]):
        assert metric_directions(*find_task(planned.harness_task, where="")) == dict(
            build_task(planned).higher_is_better() or {}
        )
