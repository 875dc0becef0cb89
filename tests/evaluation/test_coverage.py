"""Every suite × language resolves in the installed harness; the language table's codes are the harness's.

Tasks are built up to the download: that call alone is replaced, by rows in the data sets' own columns.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.config.group import AggMetricConfig

from lape_ds import benchmark_codes
from lape_ds.errors import UserError
from lape_ds.evaluation.harness_tasks import all_tasks, default_metric
from lape_ds.evaluation.lm import quiet_harness
from lape_ds.evaluation.pooled import PooledTask
from lape_ds.evaluation.suites import PlannedTask, Suite, left_out, load_suite, plan, suite_names
from lape_ds.evaluation.tasks import (
    _check_weights,
    _plain,
    _settings,
    begin_drawing,
    build_task,
    task_settings,
)
from lape_ds.languages import all_languages, find_language
from tests.evaluation import public_data
from tests.processes import REPO

TWELVE = "mt af is cy mk lv lt sl sk et ka ne".split()
GROUPS = ("include", "global_mmlu", "mmlu_prox")  # of up to 57 tasks each
# The corpus's held-out text is written by the run: tests/evaluation/test_heldout.py.
NOT_HERE = "heldout_bits_per_byte"
pytestmark = pytest.mark.usefixtures("spbleu_model")


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets, "load_dataset", public_data.load_dataset)
    datasets.disable_progress_bars()
    with quiet_harness():
        yield
    datasets.enable_progress_bars()


def check(planned: PlannedTask) -> None:
    """Builds a task and everything that would be asked of its first documents."""
    task = build_task(planned)
    assert task.task_name == planned.name
    directions: dict[str, bool] = task.higher_is_better() or {}
    assert directions[planned.spec.metric] == (planned.spec.direction == "higher")
    num_fewshot = task.get_config("num_fewshot")
    assert num_fewshot == planned.spec.num_fewshot
    task.build_all_requests(limit=2)
    for request in task.instances:
        assert all(part is not None for part in request.args)
        prompt = str(request.args[0])
        assert "{{" not in prompt
        assert "{{" not in str(request.args[1:])
    assert directions.keys() <= (task.aggregation() or {}).keys()
    assert len(task._filters) == 1
    members = list(task.members.values()) if isinstance(task, PooledTask) else [task]
    assert not re.search("0x[0-9a-f]{6}", json.dumps(list(map(_settings, members)), default=_plain))
    if planned.spec.random_baseline and task.OUTPUT_TYPE == "multiple_choice":
        sizes = {len([one for one in task.instances if one.doc_id == number]) for number in (0, 1)}
        if planned.title not in ("m_truthfulqa", "mela"):  # of any size; a correlation
            assert sizes == {round(1 / planned.spec.random_baseline)}


@pytest.mark.parametrize("language", TWELVE)
def test_every_task_of_a_target_language_resolves(language: str, capsys: pytest.CaptureFixture[str]) -> None:
    planned = {
        one.name: one for name in suite_names() for one in plan_of(name, [language]) if one.title != NOT_HERE
    }
    for one in planned.values():
        check(one)
    with capsys.disabled():
        print(f"\n{language}: {len(planned)} tasks", end="")


def plan_of(name: str, languages: list[str]) -> list[PlannedTask]:
    """Of a suite; none where the suite has nothing for them."""
    suite = load_suite(name)
    return (
        [] if len(left_out(suite, languages)) == len(suite.tasks) * len(languages) else plan(suite, languages)
    )


def test_general_resolves() -> None:
    planned = plan(load_suite("general"), ["en"])
    assert len(planned) == 8
    for one in planned:
        check(one)


def test_mmlu_is_one_task_of_57_subjects() -> None:
    one = plan(load_suite("general"), ["en"])[0]
    task = build_task(one)
    assert isinstance(task, PooledTask)
    assert len(task.members) == 57
    assert len(task.eval_docs) == 57 * 6
    assert len({document["harness_task"] for document in task.eval_docs[:57]}) == 57  # a limit takes of all
    context = task.fewshot_context(task.eval_docs[0], 5)
    assert context.startswith(
        "The following are multiple choice questions (with answers) about abstract algebra."
    )
    assert context.count("Answer:") == 6


def test_every_task_of_the_other_languages_resolves() -> None:
    """Groups in one language each: their members differ in nothing else, and 42 × 57 of them take minutes."""
    suite = load_suite("monolingual")
    codes = [language.code for language in all_languages()]
    built: Counter[str] = Counter()
    for one in plan(suite, codes):
        if one.title == NOT_HERE or (one.title in GROUPS and built[one.title]):
            continue
        if built[one.title] < 6 or one.title in GROUPS:
            check(one)
            built[one.title] += 1
    assert set(built) == set(suite.tasks) - {NOT_HERE}


def test_every_planned_name_is_in_the_harness_and_read_as_it_says() -> None:
    """All languages, without building."""
    index = all_tasks()
    planned = [
        one
        for one in plan(load_suite("monolingual"), [one.code for one in all_languages()])
        if one.title != NOT_HERE
    ]
    assert len(planned) > 1500
    for one in planned:
        assert one.harness_task in index, one
        found = default_metric(one.harness_task, one.spec.metric, where=one.title)
        assert found == (one.spec.metric, one.spec.direction)


# A column of the language table -> the harness's task names, whose group is the code.
COLUMNS = {
    "belebele": r"belebele_([a-z]{3}_[A-Z][a-z]{3})",
    "multiblimp": r"multiblimp_([a-z]{3})",
    "global_piqa_parallel": r"global_piqa_parallel_cloze_([a-z_]+)",
    "global_piqa_nonparallel": r"global_piqa_nonparallel_cloze_([a-z_]+)",
    "include": r"include_base_44_([a-z]+|north_macedonian)",
    "global_mmlu": r"global_mmlu_full_([a-z]{2,3})",
    "mmlu_prox": r"mmlu_prox_lite_([a-z]{2})",
    "m_mmlu": r"m_mmlu_([a-z]{2})",
    "m_arc": r"arc_([a-z]{2})",
    "m_hellaswag": r"hellaswag_([a-z]{2})",
    "m_truthfulqa": r"truthfulqa_([a-z]{2})_mc1",
}
# Languages of the harness that the table does not have (yet), and Global-PIQA's further regions.
NOT_OURS = {
    "multiblimp": "aln apu aqz azz bor bua chu egy frm fro got grc hbo hbs hit hyw koi kpv krl kxh nhi olo orv ota tpn "
    "ttc urb vep xcl xpg",
    "global_piqa_parallel": "afb_arab arq_arab bcc_arab bra_deva bxr_cyrl ckm_latn cls_deva dhd_deva ekp_latn idu_latn "
    "iso_latn kan_latn nag_latn rwr_deva swv_deva tam_latn tel_latn urh_latn",
    "global_piqa_nonparallel": "afb_arab arq_arab bcc_arab bra_deva bsk_arab btx_latn ckm_latn cls_deva dhd_deva ekp_latn "
    "idu_latn iso_latn kan_latn nag_latn rwr_deva swv_deva tam_latn tel_latn urh_latn",
}


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_of_the_language_table_is_the_harness_s(column: str) -> None:
    ours = {getattr(language, column) for language in all_languages()} - {None}
    theirs = {match[1] for name in all_tasks() if (match := re.fullmatch(COLUMNS[column], name))}
    regional = {code for code in theirs if re.fullmatch(r"[a-z]{3}_[a-z]{4}_[a-z]{4}", code)}
    regional -= set(benchmark_codes.GLOBAL_PIQA_REGION.values())
    assert ours == theirs - set(NOT_OURS.get(column, "").split()) - regional


def test_a_code_belongs_to_the_language_that_it_names() -> None:
    for column in (
        "belebele",
        "global_mmlu",
        "mmlu_prox",
        "m_mmlu",
        "m_arc",
        "m_hellaswag",
        "m_truthfulqa",
        "multiblimp",
    ):
        for language in all_languages():
            code = getattr(language, column)
            assert code is None or find_language(code) is language, (column, code)


def test_estonian_and_romanised_nepali_have_belebele_s_codes() -> None:
    """Belebele writes Estonian `est`, FLORES+ `ekk`; Nepali in Latin letters is another row."""
    suite = load_suite("monolingual")
    names = {
        one.language: one.harness_task
        for one in plan(suite, ["ekk", "npi", "npi_Latn"])
        if one.title == "belebele"
    }
    assert names == {
        "ekk_Latn": "belebele_est_Latn",
        "npi_Deva": "belebele_npi_Deva",
        "npi_Latn": "belebele_npi_Latn",
    }


def own_suite(tmp_path: Path, *tasks: str, language: str = "en") -> Suite:
    path = tmp_path / "own.yaml"
    lines = ["name: own", f"languages: [{language}]", "tasks:", *(f"  {task}" for task in tasks)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return load_suite(path)


def test_any_task_of_the_harness_is_one_line(tmp_path: Path) -> None:
    suite = own_suite(
        tmp_path,
        "mmlu:",
        "hellaswag: {task: hellaswag, metric: acc_norm, num_fewshot: 2}",
        "gsm8k:",
        "xnli: xnli",
    )
    read = {title: (one.metric, one.direction, one.num_fewshot) for title, one in suite.tasks.items()}
    assert read == {
        "mmlu": ("acc", "higher", None),
        "hellaswag": ("acc_norm", "higher", 2),
        "gsm8k": ("exact_match", "higher", None),
        "xnli": ("acc", "higher", None),
    }
    planned = {one.title: one for one in plan(suite, ["en"])}
    assert len(build_task(planned["mmlu"]).eval_docs) == 57 * 6
    gsm8k = build_task(planned["gsm8k"])
    assert gsm8k.get_config("num_fewshot") == 5  # its own
    assert [one.name for one in gsm8k._filters] == ["strict-match"]  # its first


def test_an_unknown_task_is_told_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"suite task 'mmul' .*own\.yaml:4.*no task 'mmul', did you mean 'mmlu'\?"
    ):
        own_suite(tmp_path, "mmul:")
    belebele = '"belebel_{belebele}"'
    suite = own_suite(tmp_path, f"belebele: {{task: {belebele}, metric: acc, direction: higher}}")
    with pytest.raises(
        UserError, match=r"'belebele': no task 'belebel_mlt_Latn', did you mean 'belebele_mlt_Latn'\?"
    ):
        build_task(plan(suite, ["mt"])[0])


def test_the_harness_s_own_flores_is_refused_for_what_reads_its_successor(tmp_path: Path) -> None:
    """`facebook/flores` is a script, which `datasets` no longer runs."""
    suite = own_suite(
        tmp_path,
        'flores: {task: "flores_afr_Latn-eng_Latn_prompt_1", metric: chrf, direction: higher}',
        language="af",
    )
    with pytest.raises(
        UserError, match=r"facebook/flores no longer loads; name flores_from_english and flores_to_english"
    ):
        build_task(plan(suite, ["af"])[0])


def test_a_filter_is_chosen_by_name(tmp_path: Path) -> None:
    for name in ("flexible-extract", "loose"):
        suite = own_suite(tmp_path, f"gsm8k: {{task: gsm8k, metric: exact_match, filter: {name}}}")
        one = plan(suite, ["en"])[0]
        if name == "loose":
            with pytest.raises(UserError, match=r"has no filter 'loose' but strict-match, flexible-extract"):
                build_task(one)
        else:
            assert [filters.name for filters in build_task(one)._filters] == [name]


@pytest.mark.parametrize("title", ["hellaswag", "mmlu", "winogrande"])
def test_examples_are_drawn_alike_each_time(title: str) -> None:
    """Of some tasks they are drawn for each document, of MMLU they are the first five."""
    one = {one.title: one for one in plan(load_suite("general"), ["en"])}[title]

    def prompts(task: Task) -> list[Any]:
        task.build_all_requests()
        return [request.args for request in task.instances]

    task = build_task(one)
    first = prompts(task)
    begin_drawing(task)
    assert prompts(task) == first == prompts(build_task(one))
    assert len(first) > 20


def test_more_examples_than_there_are_is_refused(tmp_path: Path) -> None:
    suite = own_suite(tmp_path, "mmlu: {task: mmlu, num_fewshot: 7}")
    with pytest.raises(UserError, match=r"num_fewshot 7, but mmlu_abstract_algebra has 6 examples"):
        build_task(plan(suite, ["en"])[0])


def test_a_group_of_unlike_tasks_is_refused() -> None:
    general = {
        one.title: build_task(one)
        for one in plan(load_suite("general"), ["en"])
        if one.title in ("piqa", "gsm8k")
    }
    said = (
        r"suite task 'mine': both has tasks of different forms: piqa_eng_Latn \(multiple_choice; acc, acc_norm\) and "
        r"gsm8k_eng_Latn \(generate_until; exact_match\); name its parts one by one"
    )
    with pytest.raises(UserError, match=said):
        PooledTask("both", [general["piqa"], general["gsm8k"]], where="suite task 'mine'")


def bits(
    tmp_path: Path, name: str, pattern: str, *, count: int, filtered: str = "strict"
) -> ConfigurableTask:
    """A task whose answers a pattern of its own finds."""
    rows = tmp_path / f"{name}.jsonl"
    rows.write_text('{"q": "?", "a": "yes"}\n' * count, encoding="utf-8")
    pipeline = [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{a}}",
        "filter_list": [{"name": filtered, "filter": pipeline}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    return ConfigurableTask(config=config)


def test_a_pooled_answer_is_read_by_its_own_tasks_filter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    members = [bits(tmp_path, "one", "(yes)", count=2), bits(tmp_path, "two", "(no)", count=2)]
    pooled = PooledTask("both", members, where="suite task 'mine'")
    pooled.build_all_requests()
    for instance in pooled.instances:
        instance.resps = ["yes or no"]
    pooled.apply_filters()
    read = [instance.filtered_resps["strict"] for instance in pooled.instances]
    assert read == ["yes", "no", "yes", "no"]
    members[1] = bits(tmp_path, "three", "(no)", count=2, filtered="loose")
    with pytest.raises(
        UserError, match=r"one \(filter strict\) and three \(filter loose\); give it a filter"
    ):
        PooledTask("both", members, where="suite task 'mine'")


def test_a_group_that_weighs_tasks_alike_is_refused_where_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    (one,) = plan(own_suite(tmp_path, "mine: {task: some, metric: exact_match, direction: higher}"), ["en"])
    for count, weighted in ((2, False), (3, True), (3, False)):
        group = Group("some", aggregate_metric_list=[AggMetricConfig("exact_match", weight_by_size=weighted)])
        group.add(bits(tmp_path, "one", "(yes)", count=2))
        group.add(bits(tmp_path, f"two{count}", "(no)", count=count))
        refused = count == 3 and not weighted
        said = r"'mine': some weighs each of its 2 tasks alike .*have 2 to 3; name its parts"
        with pytest.raises(UserError, match=said) if refused else nullcontext():
            _check_weights(group, one, "suite task 'mine'")


def test_a_local_copy_stands_in_for_a_built_in_task_s_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of `datasets`' own `load_dataset`; the path is the user's, whatever folder the harness reads it from."""
    monkeypatch.undo()
    rows = public_data.load_dataset("facebook/belebele")["test"]
    (tmp_path / "belebele" / "est_Latn").mkdir(parents=True)
    rows.to_json(tmp_path / "belebele" / "est_Latn" / "test.jsonl")
    one = next(one for one in plan(load_suite("monolingual"), ["et"]) if one.title == "belebele")
    monkeypatch.chdir(tmp_path)
    for copy in ("belebele", "belebele/est_Latn/test.jsonl", str(tmp_path / "belebele")):
        task = build_task(one, datasets={"facebook/belebele": copy})
        assert [dict(row)["question"] for row in task.eval_docs] == rows["question"]
    with pytest.raises(
        UserError, match=r"suite task 'belebele': no folder or file nowhere \(from `eval.datasets`"
    ):
        build_task(one, datasets={"facebook/belebele": "nowhere"})
    # A path of the form of an id is not looked for on the hub.
    flores = next(one for one in plan(load_suite("monolingual"), ["et"]) if one.title == "flores_to_english")
    with pytest.raises(
        UserError,
        match=r"suite task 'flores_to_english': no folder or file data/flores \(from `eval.datasets`",
    ):
        build_task(flores, datasets={"openlanguagedata/flores_plus": "data/flores"})


def test_without_the_hub_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    planned = {one.title: one for one in plan(load_suite("monolingual"), ["et"])}
    for title, dataset in (
        ("belebele", "facebook/belebele est_Latn"),
        ("flores_bits_per_byte", r"openlanguagedata/flores_plus \(ekk_Latn\)"),
    ):
        with pytest.raises(
            UserError, match=rf"cannot reach hub data set {dataset}.*HF_HUB_OFFLINE, or give local files"
        ) as caught:
            build_task(planned[title])
        assert "\n" not in str(caught.value)


def settings_of(titles: Iterable[str]) -> dict[str, Any]:
    """By title, in Estonian."""
    suite = load_suite("monolingual")
    planned = {one.title: one for one in plan(suite, ["et"])}
    return {title: task_settings(planned[title], build_task(planned[title])) for title in titles}


_OTHER_PROCESS = """
import json, sys
import datasets
from lape_ds.evaluation.lm import quiet_harness
from tests.evaluation import public_data
from tests.evaluation.test_coverage import settings_of
datasets.load_dataset = public_data.load_dataset
with quiet_harness():
    print(json.dumps(settings_of(sys.argv[1:])))
"""


@pytest.mark.long
def test_settings_are_the_same_in_another_process() -> None:
    """Also where the harness has a function of which some arguments are given, which it tells by its address."""
    titles = ["xcopa", "include"]
    done = subprocess.run(
        [sys.executable, "-c", _OTHER_PROCESS, *titles],
        cwd=REPO,
        env={**os.environ, "PYTHONHASHSEED": "7"},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(json.dumps(settings_of(titles)))


def test_settings_tell_which_function_and_arguments_a_task_has(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = (one for one in plan(load_suite("monolingual"), ["et"]) if one.title == "xcopa")
    task = build_task(one)
    first = task_settings(one, task)["task_sha256"]
    given: Any = task.get_config("doc_to_text")
    assert isinstance(given, partial)
    monkeypatch.setitem(given.keywords, "connector", {"cause": "sest", "effect": "seega"})
    other = task_settings(one, task)["task_sha256"]
    monkeypatch.setattr(task.config, "doc_to_text", settings_of)
    assert len({first, other, task_settings(one, task)["task_sha256"]}) == 3


def test_settings_tell_what_decides_a_number(tmp_path: Path) -> None:
    one = {one.title: one for one in plan(load_suite("general"), ["en"])}["hellaswag"]
    settings = task_settings(one, build_task(one))
    assert settings == task_settings(one, build_task(one))
    fewer = replace(one, spec=one.spec.model_copy(update={"num_fewshot": 3}))
    changed = task_settings(fewer, build_task(fewer))
    assert {key for key in settings if settings[key] != changed[key]} == {
        "num_fewshot",
        "task_sha256",
    }
