"""Every suite × language resolves in the installed harness; the language table's codes are the harness's.

Tasks are built up to the download: that call alone is replaced, by rows in the data sets' own columns.
"""

from __future__ import annotations

import re
from collections import Counter

import datasets
import pytest

from lape_ds import benchmarks
from lape_ds.errors import UserError
from lape_ds.evaluation.harness_tasks import all_tasks, default_metric
from lape_ds.evaluation.pooled import PooledTask
from lape_ds.evaluation.suites import PlannedTask, load_suite, plan, suite_names
from lape_ds.evaluation.tasks import build_task
from lape_ds.languages import all_languages, find_language
from tests.evaluation import public_data

TWELVE = "mt af is cy mk lv lt sl sk et ka ne".split()
GROUPS = ("include", "global_mmlu", "mmlu_prox")  # of up to 57 tasks each
# The corpus's held-out text is written by the run: tests/evaluation/test_heldout.py.
NOT_HERE = "heldout_bits_per_byte"
pytestmark = pytest.mark.usefixtures("spbleu_model")


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", public_data.load_dataset)


def check(planned: PlannedTask) -> None:
    """Builds a task and everything that would be asked of its first documents."""
    task = build_task(planned)
    assert task.task_name == planned.name
    assert dict(task.higher_is_better())[planned.spec.metric] == (planned.spec.direction == "higher")
    num_fewshot = task.get_config("num_fewshot")
    assert num_fewshot == planned.spec.num_fewshot
    task.build_all_requests(limit=2)
    for request in task.instances:
        assert all(part is not None for part in request.args)
        prompt = str(request.args[0])
        assert "{{" not in prompt
        assert "{{" not in str(request.args[1:])
    assert set(task.higher_is_better()) <= set(task.aggregation())
    assert len(task._filters) == 1
    if planned.spec.random_baseline and task.OUTPUT_TYPE == "multiple_choice":
        sizes = {len([one for one in task.instances if one.doc_id == number]) for number in (0, 1)}
        if planned.title not in ("m_truthfulqa", "mela"):  # of any size; a correlation
            assert sizes == {round(1 / planned.spec.random_baseline)}


@pytest.mark.parametrize("language", TWELVE)
def test_every_task_of_a_target_language_resolves(language: str, capsys: pytest.CaptureFixture[str]) -> None:
    planned = {one.name: one for name in suite_names() for one in plan_of(name, [language]) if one.title != NOT_HERE}
    for one in planned.values():
        check(one)
    with capsys.disabled():
        print(f"\n{language}: {len(planned)} tasks", end="")


def plan_of(name: str, languages: list[str]) -> list[PlannedTask]:
    """Of a suite; none where the suite has nothing for them."""
    try:
        return plan(load_suite(name), languages)
    except UserError as error:
        assert "has no task for" in str(error)
        return []


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
    assert context.startswith("The following are multiple choice questions (with answers) about abstract algebra.")
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
    planned = [one for one in plan(load_suite("monolingual"), [one.code for one in all_languages()]) if one.title != NOT_HERE]
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
    regional -= set(benchmarks.GLOBAL_PIQA_REGION.values())
    assert ours == theirs - set(NOT_OURS.get(column, "").split()) - regional


def test_a_code_belongs_to_the_language_that_it_names() -> None:
    for column in ("belebele", "global_mmlu", "mmlu_prox", "m_mmlu", "m_arc", "m_hellaswag", "m_truthfulqa", "multiblimp"):
        for language in all_languages():
            code = getattr(language, column)
            assert code is None or find_language(code) is language, (column, code)


def test_estonian_and_romanised_nepali_have_belebele_s_codes() -> None:
    """Belebele writes Estonian `est`, FLORES+ `ekk`; Nepali in Latin letters is another row."""
    suite = load_suite("monolingual")
    names = {one.language: one.harness_task for one in plan(suite, ["ekk", "npi", "npi_Latn"]) if one.title == "belebele"}
    assert names == {
        "ekk_Latn": "belebele_est_Latn",
        "npi_Deva": "belebele_npi_Deva",
        "npi_Latn": "belebele_npi_Latn",
    }
