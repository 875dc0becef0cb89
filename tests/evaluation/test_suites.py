"""Suites: shipped ones parse and plan; every fault of a user's own is one line with the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from lape_ds.errors import UserError
from lape_ds.evaluation.suites import load_suite, plan, suite_names
from lape_ds.languages import find_language

VALID = """\
name: own
tasks:
  topic:
    task: cldr_topic
    metadata: {language: "{code}"}
    metric: acc
    direction: higher
    random_baseline: 0.25
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        load_suite(written(tmp_path, text))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_shipped_suite_is_named_as_its_file_and_plans():
    assert "quickstart" in suite_names()
    for name in suite_names():
        suite = load_suite(name)
        assert suite.name == name
        assert plan(suite, ["mlt", "eng"])


def test_plan_fills_in_the_language_and_leaves_out():
    planned = plan(load_suite("quickstart"), ["Maltese", "en", "mt"])  # Maltese twice
    assert [(one.title, one.language) for one in planned] == [
        ("bits_per_byte", "mlt_Latn"),
        ("bits_per_byte", "eng_Latn"),
        ("topic", "mlt_Latn"),
        ("topic", "eng_Latn"),
        ("cloze", "mlt_Latn"),
        ("cloze", "eng_Latn"),
        ("translation", "mlt_Latn"),  # English is what it translates from
    ]
    assert planned[2].name == "cldr_topic_mlt_Latn"
    assert planned[2].harness_task == "cldr_topic"
    assert planned[2].metadata == {"language": "mlt_Latn"}


def test_a_task_name_may_hold_the_language(tmp_path: Path):
    suite = load_suite(written(tmp_path, VALID.replace("cldr_topic", '"belebele_{belebele}"')))
    # Belebele writes Estonian `est`, FLORES+ `ekk`.
    assert plan(suite, ["ekk"])[0].name == "belebele_est_Latn"
    with pytest.raises(UserError, match=r"topic.*Welsh.*belebele.*left_out"):  # Belebele has no Welsh
        plan(suite, ["cym"])


def test_unknown_suite_names_the_nearest_and_all():
    with pytest.raises(UserError, match=r"'quickstrat', did you mean 'quickstart'\?.*shipped: .*quickstart"):
        load_suite("quickstrat")
    with pytest.raises(UserError, match=r"no suite .*nowhere\.yaml"):
        load_suite("nowhere.yaml")


def test_unknown_language_and_nothing_left():
    with pytest.raises(UserError, match="Maltees"):
        plan(load_suite("quickstart"), ["Maltees"])
    suite = load_suite("quickstart")
    only = suite.model_copy(update={"tasks": {"translation": suite.tasks["translation"]}})
    with pytest.raises(UserError, match="no task for eng_Latn"):
        plan(only, ["eng"])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("metric:", "metrc:", r"tasks\.topic\.metrc: unknown key, did you mean 'metric'\?.*own\.yaml:6"),
        ("name:", "nmae:", r"nmae: unknown key, did you mean 'name'\?.*own\.yaml:1"),
        ("    metric: acc\n", "", r"tasks\.topic\.metric: must be given .*own\.yaml:3"),
        ("higher", "up", r"tasks\.topic\.direction: .*'higher' or 'lower', not 'up' .*own\.yaml:7"),
        ("0.25", "often", r"tasks\.topic\.random_baseline: .*not 'often' .*own\.yaml:8"),
        ("0.25", "0.25\n    num_fewshot: -1", r"tasks\.topic\.num_fewshot: .*0, not -1 .*own\.yaml:9"),
        ("0.25", "0.25\n    left_out: {Maltees: why}", r"tasks\.topic\.left_out\.Maltees: .*own\.yaml:9"),
        ("name: own\n", "name: own\nname: other\n", "given twice"),
        (VALID, "name: own\ntasks: {}\n", r"tasks: .*own\.yaml:2"),
        (VALID, "- a list\n", "own.yaml"),
        (VALID, "name: [", r"own\.yaml:1 is not YAML"),
    ],
)
def test_faults_are_one_line_with_key_place_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, expected: str
):
    assert old in VALID
    import re

    message = refusal(tmp_path, VALID.replace(old, new))
    assert re.search(expected, message), message


def test_left_out_takes_any_name_of_a_language(tmp_path: Path):
    path = written(tmp_path, VALID + "    left_out: {Maltese: no such text}\n")
    assert load_suite(path).tasks["topic"].left_out == {find_language("mt").code: "no such text"}
