"""The offline tasks' documents: right answers by another way, parallel over languages, never trained on."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest

from lape_ds.corpora.cldr import cycle, months, sample_records, write
from lape_ds.errors import UserError
from lape_ds.evaluation import cldr_documents
from lape_ds.evaluation.cldr_documents import FIRST_RECORD, SEED, bits_per_byte, cloze, topic, translation
from lape_ds.languages import find_language
from lape_ds.recipe import CLDRSource, load_recipe
from lape_ds.resources import asset

CHOICES: list[Callable[..., Any]] = [topic, cloze, translation]


def documents(task: Callable[..., Any], language: str, count: int = 48) -> list[dict[str, Any]]:
    return list(task(language=language, num_documents=count)["test"])


def answer(document: dict[str, Any]) -> str:
    return document["choices"][document["label"]]


@pytest.mark.parametrize("language", ["mlt", "kat"])
def test_nothing_held_out_is_in_the_training_corpus(language: str):
    source = CLDRSource(kind="cldr")  # a recipe's own settings
    trained = {
        record.text
        for record in sample_records(find_language(language), count=source.records, seed=source.seed)
    }
    whole = [document["text"] for document in documents(bits_per_byte, language, 128)]
    assert trained.isdisjoint(whole)
    longer = "\n".join(trained)
    for document in documents(topic, language, 128):
        assert document["context"] + answer(document) not in longer
    assert trained.isdisjoint(answer(document) for document in documents(translation, language))


@pytest.mark.usefixtures("users_text")
def test_no_shipped_recipe_draws_the_tasks_records():
    for path in sorted(asset("recipes").glob("*.yaml")):
        source = load_recipe(path).corpus.source
        assert not isinstance(source, CLDRSource) or source.records < FIRST_RECORD


@pytest.mark.parametrize("language", ["mlt", "eng", "cmn", "urd"])
def test_topic_continues_its_own_record(language: str):
    records = list(sample_records(find_language(language), count=48, seed=SEED, first=FIRST_RECORD))
    for record, document in zip(records, documents(topic, language), strict=True):
        assert record.text.startswith(document["context"] + answer(document))
        wrong = [choice for choice in document["choices"] if choice != answer(document)]
        kinds = [{other.kind for other in records if choice.strip() in other.text} for choice in wrong]
        assert all(kind - {record.kind} for kind in kinds)


@pytest.mark.parametrize("language", ["mlt", "eng", "cmn"])
def test_cloze_asks_for_the_next_name(language: str):
    spoken = find_language(language)
    comma = cycle(spoken, ["", ""]).strip()
    years = [months(spoken), [write(spoken, "weekdays", (day, 1, ())) for day in range(7)]]
    for document in documents(cloze, language, 62):
        shown = [name.strip() for name in document["context"].split(comma)[:-1]]
        year = next(year for year in years if shown[0] in year)
        expected = year[(year.index(shown[-1]) + 1) % len(year)]
        assert answer(document).strip() == expected
        assert not {choice.strip() for choice in document["choices"]} & set(shown)


@pytest.mark.parametrize("language", ["mlt", "cmn", "npi"])
def test_translation_says_the_same_as_the_english(language: str):
    spoken, english = find_language(language), find_language("eng")
    said = {}
    for record in sample_records(english, count=3000, seed=SEED, first=FIRST_RECORD):
        if record.kind not in ("months", "weekdays"):
            content = record.content[:2]
            said[write(english, record.kind, content) + "\n"] = write(spoken, record.kind, content)
    for document in documents(translation, language):
        assert answer(document) == said[document["context"]]


@pytest.mark.parametrize("task", CHOICES)
@pytest.mark.parametrize(
    "language", "mlt eng cmn jpn tha arb heb hin npi kat hye rus ell kor mya amh".split()
)
def test_every_question_has_four_different_choices(task: Callable[..., Any], language: str):
    asked = documents(task, language)
    assert len(asked) == 48
    assert all(len(set(document["choices"])) == 4 for document in asked)
    places = collections.Counter(document["label"] for document in asked)
    assert places == {0: 12, 1: 12, 2: 12, 3: 12}  # position gives nothing away
    assert documents(task, language) == asked


def test_translation_is_parallel():
    labels = [[d["label"] for d in documents(translation, language)] for language in ("mlt", "kat")]
    assert labels[0] == labels[1]


def test_few_documents_are_the_first_of_many():
    assert documents(bits_per_byte, "mlt", 5) == documents(bits_per_byte, "mlt", 20)[:5]


def test_a_language_with_too_few_names_is_refused():
    with pytest.raises(UserError, match=r"too little of .*--languages"):
        cldr_documents.topic(language="Latin", num_documents=8)
