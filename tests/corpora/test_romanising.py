"""Text in Latin letters, against words whose romanisation is known, and against all of CLDR's records."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from lape_ds.corpora.cldr import sample_records
from lape_ds.corpora.reading import read_documents, source_identity
from lape_ds.corpora.romanising import romanise
from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.recipe import CLDRSource, FilesSource


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("ka", "საქართველო, თბილისი; წყალი", "sakartvelo, tbilisi; tsʼqʼali"),
        ("ka", "ᲡᲐᲥᲐᲠᲗᲕᲔᲚᲝ", "sakartvelo"),
        ("mk", "Ѓорче Петров, ќебе, џез", "Ǵorče Petrov, ḱebe, d̂ez"),
        ("ru", "Щука и ёлка: Югославия", "Ŝuka i ëlka: Ûgoslaviâ"),
        ("be", "Ў Мінску", "Ŭ Mínsku"),
        ("ne", "नेपाल, काठमाडौँ।", "nēpāla, kāṭhamāḍaum̐."),
        ("hi", "हिन्दी में १२ ऋषि, ड़ और ज़", "hindī mēṁ 12 r̥ṣi, ṛa aura za"),
        ("mt", "Ħaż-Żebbuġ", "Ħaż-Żebbuġ"),
    ],
)
def test_known_words(language: str, text: str, expected: str) -> None:
    """In both normal forms of the text; the result is composed."""
    for form in ("NFC", "NFD"):
        found = romanise(unicodedata.normalize(form, text), find_language(language))
        if language != "mt":
            assert found == unicodedata.normalize("NFC", expected)
    assert romanise(text, find_language("mt")) == text


@pytest.mark.parametrize("language", "bel bos_Cyrl bul mkd rus srp_Cyrl ukr hin mar npi kat".split())
def test_no_letter_of_the_script_is_left(language: str) -> None:
    found = find_language(language)
    name = {"Cyrl": "CYRILLIC", "Deva": "DEVANAGARI", "Geor": "GEORGIAN"}[found.script]
    texts = [record.text for record in sample_records(found, count=150, seed=1)]
    assert any(name in unicodedata.name(letter, "") for text in texts for letter in text)
    left = {letter for text in texts for letter in romanise(text, found)}
    assert not [letter for letter in left if name in unicodedata.name(letter, "")]


def test_letters_without_a_table_are_refused() -> None:
    """Half a text in Latin letters would be no control."""
    for language in ("kk_Cyrl", "ja", "ar"):
        with pytest.raises(UserError, match=r"has no table for .*; it has bel_Cyrl, .*kat_Geor"):
            romanise("text", find_language(language))


def test_a_source_gives_the_copy_and_another_identity(tmp_path: Path) -> None:
    georgian = find_language("ka")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "წყალი"}) + "\n", encoding="utf-8")
    native = FilesSource(kind="files", path=str(tmp_path / "a.jsonl"))
    copy = native.model_copy(update={"romanise": True})
    assert [text for text, _ in read_documents(native, georgian, on_bad_line="stop")] == ["წყალი"]
    assert [text for text, _ in read_documents(copy, georgian, on_bad_line="stop")] == ["tsʼqʼali"]
    assert source_identity(native, georgian) != source_identity(copy, georgian)
    # Text that was packed before there was the setting is found again.
    assert "romanise" not in source_identity(native, georgian)["source"]
    assert source_identity(CLDRSource(kind="cldr"), georgian)["source"] == {
        "kind": "cldr",
        "records": 20_000,
        "seed": 0,
    }
