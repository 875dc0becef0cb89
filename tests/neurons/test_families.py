"""The table of families."""

from __future__ import annotations

from lape_ds.languages import all_languages
from lape_ds.neurons import families as table
from lape_ds.neurons.families import families, family


def test_every_language_has_one_family() -> None:
    known = {language.iso639_3 for language in all_languages()}
    named = [code for codes in table._FAMILIES.values() for code in codes.split()]
    assert len(named) == len(set(named))
    assert set(named) <= known
    assert all(family(language.code) for language in all_languages())


def test_families_by_knowledge() -> None:
    """The paper's twelve, and scripts of one language."""
    paper = "mlt afr isl cym mkd lvs lit slv slk ekk kat npi".split()
    codes = [f"{code}_Latn" for code in paper[:4]] + ["mkd_Cyrl"]
    assert [family(code) for code in codes] == ["Semitic", "Germanic", "Germanic", "Celtic", "Slavic"]
    assert family("lvs_Latn") == family("lit_Latn") == "Baltic"
    assert family("cmn_Hans") == family("cmn_Hant") == "Sinitic"
    assert family("kat_Geor") == "Georgian"
    assert family("hau_Arab") == family("hau_Latn") == "Hausa"


def test_the_recipe_goes_before_the_table() -> None:
    assert families(["mlt_Latn", "heb_Hebr"], {"mlt_Latn": "Italic"}) == ["Italic", "Semitic"]
