"""Suites: shipped ones parse and plan; every fault of a user's own is one line with the place."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lape_ds.errors import UserError
from lape_ds.evaluation import harness_tasks
from lape_ds.evaluation.harness_tasks import own_tasks
from lape_ds.evaluation.suites import (
    LeftOut,
    NothingToRun,
    left_out,
    load_suite,
    plan,
    suite_languages,
    suite_names,
)
from lape_ds.evaluation.tasks import build_task
from lape_ds.languages import find_language
from lape_ds.resources import asset

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
        for title, task in suite.tasks.items():
            assert task.num_fewshot is not None, title  # what is shipped says how many


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
    # Belebele has no Welsh.
    assert [one.language for one in plan(suite, ["cym", "ekk"])] == ["ekk_Latn"]
    assert left_out(suite, ["cym", "ekk"]) == [LeftOut("topic", "cym_Latn", "no Welsh in it")]
    with pytest.raises(UserError, match=r"no task for cym_Latn: .*`lape-ds suites own`"):
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
        (
            'task: cldr_topic\n    metadata: {language: "{code}"}\n    metric: acc\n',
            'task: "belebele_{belebele}"\n',
            r"tasks\.topic\.metric: must be given where the task's name holds a placeholder \(.*own\.yaml:3",
        ),
        (
            "cldr_topic",
            '"a_{belebel}"',
            r"tasks\.topic: unknown placeholder \{belebel\}, did you mean 'belebele'\?.*own\.yaml:3",
        ),
        ("{code}", "{kode}", r"tasks\.topic: unknown placeholder \{kode\}, did you mean 'code'\?"),
        ("0.25", "0.25\n    languages: [Maltees]", r"tasks\.topic\.languages.*Maltees.*own\.yaml:9"),
        ("name: own", "name: own\nlanguages: some", r"languages: .*own\.yaml:2"),
        (
            "name: own",
            "name: own\ninclude: quickstrat",
            r"include: unknown suite 'quickstrat', did you mean 'quickstart'.*own\.yaml:2\)$",
        ),
        ("name: own", "name: own\ninclude: own.yaml", r"own\.yaml includes itself"),
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
    message = refusal(tmp_path, VALID.replace(old, new))
    assert re.search(expected, message), message


def test_all_faults_are_told_in_one_go_without_the_harness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Also of lines that leave something to it: to import it takes many seconds."""
    monkeypatch.setattr(harness_tasks, "find_task", lambda *_, **__: pytest.fail("the harness was asked"))
    last = refusal(
        tmp_path,
        "name: own\ninclude: none.yaml\nlanguages: some\ntasks:\n  first: {task: arc_easy, direction: up}\n"
        "  second: {tsk: mmlu, num_fewshot: -1}\n",
    )
    told = [*capsys.readouterr().err.splitlines(), f"error: {last}"]
    expected = [
        (r"include: no suite .*none\.yaml", 2),
        ("languages: ", 3),
        (r"tasks\.first\.direction: .*'higher' or 'lower', not 'up'", 5),
        (r"tasks\.second\.num_fewshot: .* not -1", 6),
        (r"tasks\.second\.tsk: unknown key, did you mean 'task'\?", 6),
    ]
    assert len(told) == len(expected), told
    for line, (text, number) in zip(told, expected, strict=True):
        assert re.search(rf"^error: {text}.*own\.yaml:{number}\)$", line), line
    last = refusal(tmp_path, "name: own\ntasks:\n  first: arc_easy\n  second: {task: mmlu}\n")
    assert last.startswith("tasks.second.languages: must be given")
    assert capsys.readouterr().err.startswith("error: tasks.first.languages: must be given")


def test_all_that_the_harness_lacks_is_told_in_one_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    last = refusal(
        tmp_path,
        "name: own\nlanguages: [mlt]\ntasks:\n  first: {task: cldr_cloze, metric: f1}\n"
        "  second: {task: cldr_topic, metric: f2}\n",
    )
    assert "cldr_topic has no metric 'f2'" in last
    assert "cldr_cloze has no metric 'f1'" in capsys.readouterr().err


def test_left_out_takes_any_name_of_a_language(tmp_path: Path):
    path = written(tmp_path, VALID + "    left_out: {Maltese: no such text}\n")
    assert load_suite(path).tasks["topic"].left_out == {find_language("mt").code: "no such text"}


def test_an_included_suite_s_tasks_come_first_and_give_way_to_one_s_own(tmp_path: Path):
    suite = load_suite(written(tmp_path, VALID.replace("name: own", "name: own\ninclude: quickstart")))
    assert list(suite.tasks) == ["bits_per_byte", "topic", "cloze", "translation"]
    assert suite.tasks["topic"] == load_suite(written(tmp_path, VALID)).tasks["topic"]
    assert suite.tasks["cloze"] == load_suite("quickstart").tasks["cloze"]
    other = tmp_path / "other.yaml"
    other.write_text("name: other\ninclude: own.yaml\n", encoding="utf-8")  # a path is seen from the file
    assert list(load_suite(other).tasks) == ["topic"]


def test_retention_is_monolingual_on_other_languages():
    retention, monolingual = load_suite("multilingual-retention"), load_suite("monolingual")
    assert retention.tasks == monolingual.tasks
    recipe = {"trained": ["mt"], "identified": ["en", "Maltese", "ka"]}
    assert suite_languages(monolingual, **recipe) == ["mlt_Latn"]
    assert suite_languages(retention, **recipe) == ["eng_Latn", "kat_Geor"]
    assert suite_languages(load_suite("general"), **recipe) == ["eng_Latn"]
    assert suite_languages(retention, **recipe, named=["Welsh"]) == ["cym_Latn"]
    assert suite_languages(load_suite("general"), **recipe, named=["Welsh"]) == ["eng_Latn"]
    with pytest.raises(UserError, match="Welshe"):
        suite_languages(load_suite("general"), **recipe, named=["Welshe"])
    with pytest.raises(NothingToRun, match="retention is for untrained languages and there are none: name"):
        suite_languages(retention, trained=["mt"], identified=["mt"])


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("all", ["mlt_Latn", "eng_Latn", "kat_Geor", "ekk_Latn"]),
        ("few", ["mlt_Latn", "eng_Latn", "kat_Geor"]),
        ("[Welsh, mt, cy]", ["cym_Latn", "mlt_Latn"]),
    ],
)
def test_whom_a_suite_is_for(tmp_path: Path, said: str, expected: list[str]):
    suite = load_suite(written(tmp_path, VALID.replace("name: own", f"name: own\nlanguages: {said}")))
    assert suite_languages(suite, trained=["mt"], identified=["en", "ka", "mt", "et"]) == expected


def test_a_short_line_is_read_as_the_task_says(tmp_path: Path):
    suite = load_suite(
        written(
            tmp_path,
            "name: own\nlanguages: [mlt]\ntasks:\n  cldr_topic:\n  mine: cldr_bits_per_byte\n"
            "  third: {task: cldr_cloze, metric: acc_bytes}\n  cldr_translation: {num_fewshot: 2}\n",
        )
    )
    assert [(one.task, one.metric, one.direction) for one in suite.tasks.values()] == [
        ("cldr_topic", "acc", "higher"),
        ("cldr_bits_per_byte", "bits_per_byte", "lower"),
        ("cldr_cloze", "acc_bytes", "higher"),
        ("cldr_translation", "acc", "higher"),
    ]
    assert suite.tasks["cldr_translation"].num_fewshot == 2
    with pytest.raises(
        UserError, match=r"suite task 'third' .*own\.yaml:4.*cldr_cloze has no metric 'f1' but acc, acc_bytes"
    ):
        load_suite(
            written(
                tmp_path, "name: own\nlanguages: [mlt]\ntasks:\n  third: {task: cldr_cloze, metric: f1}\n"
            )
        )


def test_a_task_without_a_placeholder_is_of_the_language_that_is_said(tmp_path: Path):
    """Else the same documents would be measured as each of the trained languages."""
    arc = "name: own\ntasks:\n  arc_easy: {metric: acc, direction: higher}\n"
    for languages in ("trained", "[eng, mlt]"):
        with pytest.raises(
            UserError,
            match=r"^tasks\.arc_easy\.languages: must be given.*arc_easy: \{languages: \[eng\]\}.*own\.yaml:4",
        ):
            load_suite(written(tmp_path, arc.replace("tasks:", f"languages: {languages}\ntasks:")))
    # The suite's one language is the task's, and stays so where another suite takes the task over.
    load_suite(written(tmp_path, arc.replace("tasks:", "languages: [English]\ntasks:")))
    other = tmp_path / "other.yaml"
    other.write_text("name: other\ninclude: own.yaml\nlanguages: all\n", encoding="utf-8")
    assert [one.language for one in plan(load_suite(other), ["mlt", "eng"])] == ["eng_Latn"]
    # Held-out text is the recipe's, of each language; a file is of one.
    heldout = "name: own\ntasks:\n  heldout_bits_per_byte: {metric: bits_per_byte, direction: lower}\n"
    assert len(plan(load_suite(written(tmp_path, heldout)), ["mlt", "eng"])) == 2
    with pytest.raises(UserError, match=r"^tasks\.heldout_bits_per_byte\.languages: must be given"):
        load_suite(written(tmp_path, heldout.replace("{metric", "{metadata: {path: a.txt}, metric")))


def test_every_yaml_under_tasks_is_a_task_and_a_template_is_none():
    """The harness takes every .yaml for a task, a template among them."""
    files = list(asset("eval/tasks").rglob("*.yaml"))
    names = [re.search(r"^task: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE) for path in files]
    assert all(names)
    assert {name[1] for name in names if name} == set(own_tasks())
    assert len(own_tasks()) == len(files)


def test_the_harness_s_index_is_left_alone_for_a_task_of_ours(monkeypatch: pytest.MonkeyPatch):
    """It takes seconds."""

    def index() -> dict[str, Any]:
        raise AssertionError("indexed")

    monkeypatch.setattr(harness_tasks, "all_tasks", index)
    topic = plan(load_suite("quickstart"), ["mt"])[1]
    assert build_task(topic).task_name == "cldr_topic_mlt_Latn"
    with pytest.raises(AssertionError, match="indexed"):
        build_task(replace(topic, harness_task="mmlu"))
