"""Records from CLDR: the same content in every language, whichever was used before."""

from __future__ import annotations

import datetime
import subprocess
import sys

import pytest

from lape_ds.corpora import vocabulary
from lape_ds.corpora.cldr import KINDS, cycle, months, qualifies, sample_records, write
from lape_ds.errors import UserError
from lape_ds.languages import all_languages, find_language

# The twelve target languages of arXiv 2510.13580.
TARGETS = "mlt afr isl cym mkd lvs lit slv slk ekk kat npi".split()


@pytest.mark.parametrize("code", [*TARGETS, "eng", "deu", "zho", "rus"])
def test_targets_and_high_resource_languages_qualify(code):
    assert qualifies(find_language(code))


def test_over_a_hundred_languages_qualify_and_write_every_kind():
    """146 with babel 2.18; each writes a whole line of its own names."""
    languages = [language for language in all_languages() if qualifies(language)]
    assert len(languages) > 130
    for language in languages:
        for record in sample_records(language, count=30, seed=4):
            assert record.text.strip()
            assert "\n" not in record.text
            # What babel and CLDR's root leave behind where a name is missing.
            assert not any(
                rest in record.text for rest in ("{0}", "{1}", "None", "M01", "duration-", "length-")
            )


def test_records_are_parallel_and_repeatable():
    english, maltese = (list(sample_records(find_language(c), count=300, seed=7)) for c in ("en", "mt"))
    again = list(sample_records(find_language("mt"), count=100, seed=7, first=200))
    assert [(r.id, r.kind, r.content) for r in english] == [(r.id, r.kind, r.content) for r in maltese]
    assert again == maltese[200:]
    assert {record.kind for record in maltese} == set(KINDS)
    for ours, theirs in zip(maltese, english, strict=True):
        assert write(find_language("en"), ours.kind, ours.content) == theirs.text
    other = list(sample_records(find_language("en"), count=300, seed=8))
    assert all(a.content != b.content for a, b in zip(english, other, strict=True))


def test_content_is_fixed_for_good():
    """Drawn by Python's `random()` for the seeds 0/0 to 0/2, read off once; a change needs a new version."""
    contents = [(r.kind, r.content) for r in sample_records(find_language("en"), count=3, seed=0)]
    assert contents[0] == ("languages", tuple("sq hr lv sl ur jv am ca cs sa fy bm sv".split()))
    assert contents[1][0] == "weekdays"
    assert contents[2] == (
        "counting",
        (
            ("temperature-fahrenheit", 21, 5, 4),
            ("mass-tonne", 13, 3, 5),
            ("speed-kilometer-per-hour", 0, 4, 4),
        ),
    )


def test_twenty_thousand_distinct_documents_of_a_sentence_or_three():
    texts = [record.text for record in sample_records(find_language("mt"), count=20_000, seed=0)]
    sizes = sorted(len(text.encode()) for text in texts)
    assert len(set(texts)) == 20_000
    assert 100 <= sizes[10_000] <= 400
    assert sizes[-1] <= 600


def test_facts_within_a_text():
    """14 July 2024 was a Sunday; February 2024 had 29 days; 3 km are 300,000 cm."""
    english = find_language("en")
    day = datetime.date(2024, 7, 14).toordinal()
    assert write(english, "weekdays", (5, 3, (day,))) == "Saturday, Sunday, Monday; Jul 14, 2024: Sunday"
    assert write(english, "month_lengths", ((2024, 2),)) == "February 2024: 29 days"
    pair = ("length-kilometer", 3, "length-centimeter", 300_000)
    assert write(english, "comparisons", (pair,)) == "3 kilometers = 300,000 centimeters"
    assert write(find_language("de"), "units", (("length-kilometer", "2.5"),)) == "2,5 Kilometer"
    assert (
        write(find_language("lt"), "counting", (("duration-hour", 1, 9, 3),))
        == "1 valanda, 10 valandų, 19 valandų"
    )


def test_months_for_the_cloze_task():
    assert months(find_language("mt"))[:3] == ["Jannar", "Frar", "Marzu"]
    assert months(find_language("cs"))[0] == "leden"  # stands alone, not "ledna"
    assert cycle(find_language("zh"), ["一月", "二月"]) == "一月、二月"


def test_no_language_hears_another():
    """babel's issue 1234: after Hebrew or Chinese months, Welsh ones were Hebrew or Chinese."""
    program = (
        "import sys; from lape_ds.corpora.cldr import months; from lape_ds.languages import find_language\n"
        "print({code: months(find_language(code)) for code in sys.argv[1:]}[sys.argv[1]])"
    )
    codes = ["cy", "he", "zh", "ne", "is"]
    alone = subprocess.run([sys.executable, "-c", program, "cy"], capture_output=True, text=True, check=True)
    for code in codes[1:]:
        months(find_language(code))
    assert alone.stdout.strip() == str(months(find_language("cy")))
    assert months(find_language("cy"))[0] == "Ionawr"
    assert months(find_language("ne"))[0] == "जनवरी"


def test_a_language_that_cldr_hardly_knows_is_refused():
    with pytest.raises(UserError, match=r"CLDR has too little of .*lua_Latn.*corpus\.per_language"):
        next(sample_records(find_language("lua"), count=1, seed=0))


def test_vocabulary_is_of_one_piece():
    assert {pair.split(":")[0] for pair in vocabulary.CURRENCIES} <= set(vocabulary.TERRITORIES)
    assert {unit for family in vocabulary.COMPARABLE for unit, _ in family} <= set(vocabulary.UNITS)
