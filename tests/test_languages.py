import itertools
import re

import pytest
from babel import Locale, localedata

from lape_ds.errors import UserError
from lape_ds.languages import all_languages, find_language

# The paper's twelve. Belebele and MultiBLiMP: tasks of lm-eval 0.4.13; OPUS-100: its card; GlotCC-V1: the
# folders of its published statistics; names: CLDR. None where that data set lacks the language.
TWELVE = {
    "mt": ("mlt_Latn", "Maltese", "mlt-Latn", "mt", "mlt_Latn", None),
    "af": ("afr_Latn", "Afrikaans", "afr-Latn", "af", "afr_Latn", None),
    "is": ("isl_Latn", "Icelandic", "isl-Latn", "is", "isl_Latn", "isl"),
    "cy": ("cym_Latn", "Welsh", "cym-Latn", "cy", None, "cym"),
    "mk": ("mkd_Cyrl", "Macedonian", "mkd-Cyrl", "mk", "mkd_Cyrl", "mkd"),
    "lv": ("lvs_Latn", "Latvian", "lvs-Latn", "lv", "lvs_Latn", "lav"),
    "lt": ("lit_Latn", "Lithuanian", "lit-Latn", "lt", "lit_Latn", "lit"),
    "sl": ("slv_Latn", "Slovenian", "slv-Latn", "sl", "slv_Latn", "slv"),
    "sk": ("slk_Latn", "Slovak", "slk-Latn", "sk", "slk_Latn", "slk"),
    "et": ("ekk_Latn", "Estonian", "ekk-Latn", "et", "est_Latn", "est"),
    "ka": ("kat_Geor", "Georgian", "kat-Geor", "ka", "kat_Geor", "kat"),
    "ne": ("npi_Deva", "Nepali", "npi-Deva", "ne", "npi_Deva", None),
}


@pytest.mark.parametrize("short", TWELVE)
def test_twelve_targets(short: str) -> None:
    code, name, glotcc, opus, belebele, multiblimp = TWELVE[short]
    language = find_language(short)
    assert (language.code, language.name, language.cldr) == (code, name, short)
    assert (language.glotcc, language.fineweb2, language.opus) == (glotcc, code, opus)
    assert (language.belebele, language.multiblimp) == (belebele, multiblimp)
    assert {find_language(text) for text in (code, code.lower(), glotcc, code[:3], name, name.upper())} == {
        language
    }


# ISO 639-3's macrolanguages and withdrawn codes, and names in use, with what their text is in.
@pytest.mark.parametrize(
    ("names", "code"),
    [
        ("est ekk est_Latn et Estonian", "ekk_Latn"),
        ("lav lvs lav_Latn lv", "lvs_Latn"),
        ("nep npi nep_Deva ne", "npi_Deva"),
        ("zh zho cmn chi zho_Hans zh_Hans zh-Hans cmn_Hani cmn-Hani Chinese Mandarin", "cmn_Hans"),
        ("zh_Hant zho_Hant cmn-Hant", "cmn_Hant"),
        ("no nor nob nb Norwegian Bokmål bokmal", "nob_Latn"),
        ("nn nno", "nno_Latn"),
        ("ar ara arb Arabic", "arb_Arab"),
        ("sw swa swh Swahili", "swh_Latn"),
        ("ms msa zsm may Malay", "zsm_Latn"),
        ("fa fas pes per fas_Arab Persian Farsi", "pes_Arab"),
        ("az aze azj Azerbaijani", "azj_Latn"),
        ("uz uzb uzn Uzbek", "uzn_Latn"),
        ("mn mon khk Mongolian", "khk_Cyrl"),
        ("ku kur kmr Kurdish Kurmanji", "kmr_Latn"),
        ("sq sqi als alb Albanian", "als_Latn"),
        ("tl tgl fil tgl_Latn Tagalog Filipino", "fil_Latn"),
        ("ko kor kor_Hang Korean", "kor_Hang"),
        ("he heb iw Hebrew", "heb_Hebr"),
        ("ga Irish gle", "gle_Latn"),  # the language Ga is gaa
        ("sr srp Serbian srp_Cyrl", "srp_Cyrl"),
        ("sr_Latn srp_Latn srp-latn", "srp_Latn"),
        ("grn gug gn Guarani", "gug_Latn"),
        ("ger deu de German", "deu_Latn"),
    ],
)
def test_odd_ones(names: str, code: str) -> None:
    assert {find_language(name).code for name in names.split()} == {code}


def test_flores_codes_that_changed() -> None:
    # FLORES-200's README; FLORES+'s configs as public code lists them.
    changed = {lang.flores200: lang.flores for lang in all_languages() if lang.flores200 != lang.flores}
    assert changed["est_Latn"] == "ekk_Latn"
    assert changed["zho_Hans"] == "cmn_Hans"
    assert sum(lang.flores200 is not None for lang in all_languages()) == 204  # rows of its README


def test_no_name_is_claimed_twice() -> None:
    def letters(text: str) -> str:
        return re.sub(r"[-_ ]", "", text.casefold())

    for first, second in itertools.combinations(all_languages(), 2):
        both = {letters(name) for name in first.aliases} & {letters(name) for name in second.aliases}
        assert not both, (first.code, second.code)


def test_every_field_finds_its_language() -> None:
    for language in all_languages():
        for text in (language.code, language.name, language.cldr, language.flores, language.flores200):
            assert text is None or find_language(text) is language


def test_every_cldr_locale_is_there() -> None:
    for locale in localedata.locale_identifiers():
        if re.fullmatch(r"[a-z]{2,3}(_[A-Z][a-z]{3})?", locale):
            language = find_language(locale)
            assert language.cldr is not None
            # The same likely script and language in babel's eyes.
            assert Locale.parse(language.cldr).language == ("nb" if locale == "no" else locale.split("_")[0])


def test_codes_are_well_formed() -> None:
    for language in all_languages():
        assert re.fullmatch(r"[a-z]{3}_[A-Z][a-z]{3}", language.code)
        assert language.code == f"{language.iso639_3}_{language.script}"


@pytest.mark.parametrize(("text", "nearest"), [("Maltees", "mlt_Latn"), ("Estonain", "ekk_Latn")])
def test_unknown_language_names_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(UserError, match=nearest) as caught:
        find_language(text)
    assert "\n" not in str(caught.value)


def test_fill() -> None:
    maltese = find_language("mt")
    assert maltese.fill("data/{iso639_3}/{glotcc}.txt") == "data/mlt/mlt-Latn.txt"
    with pytest.raises(UserError, match=r"unknown placeholder \{glotc\}"):
        maltese.fill("{glotc}")
    # FineWeb-2's repository has no config for English.
    with pytest.raises(UserError, match=r"English \(eng_Latn\) has no \{fineweb2\}"):
        find_language("en").fill("{fineweb2}")
    with pytest.raises(UserError, match="not a template"):
        maltese.fill("{iso639_3")
