"""Text of other scripts in Latin letters, letter by letter: the control for what follows a script and not a language.

Beside reading: a source with `romanise: true` gives its documents through here.

Source: the tables of CLDR's transforms (common/transforms, Unicode licence): Cyrillic-Latin (close to ISO 9), Georgian-Latin, and
Devanagari-Latin (close to ISO 15919; here anusvara is ṁ before every letter).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from lape_ds.errors import UserError
from lape_ds.languages import Language

# Letters, each with its romanisation.
_CYRILLIC = """а a б b в v г g ґ g̀ д d ђ đ е e є ê ж ž з z ѕ ẑ и i й j і í ј ǰ к k л l љ l̂ м m н n њ n̂ о o п p р r с s т t
ћ ć у u ф f х h ц c ч č џ d̂ ш š щ ŝ ъ ʺ ы y ь ʹ э é ю û я â"""
_GEORGIAN = """ა a ბ b გ g დ d ე e ვ v ზ z თ t ი i კ kʼ ლ l მ m ნ n ო o პ pʼ ჟ zh რ r ს s ტ tʼ უ u ფ p ქ k ღ gh ყ qʼ შ sh ჩ ch
ც ts ძ dz წ tsʼ ჭ chʼ ხ kh ჯ j ჰ h ჳ ŭi ჴ q"""
_CONSONANTS = """क k ख kh ग g घ gh ङ ṅ च c छ ch ज j झ jh ञ ñ ट ṭ ठ ṭh ड ḍ ढ ḍh ण ṇ त t थ th द d ध dh न n प p फ ph ब b भ bh म m
य y र r ल l ळ ḷ व v श ś ष ṣ स s ह h क़ q ख़ ḵẖ ग़ ġ ज़ z ड़ ṛ ढ़ ṛh फ़ f य़ ẏ ऩ ṉ ऱ ṟ ऴ ḻ"""
_VOWELS = "अ a आ ā इ i ई ī उ u ऊ ū ऋ r̥ ॠ r̥̄ ऌ l̥ ॡ l̥̄ ए ē ऐ ai ओ ō औ au ऍ ĕ ऑ ŏ ऎ e ऒ o"
_VOWEL_SIGNS = "ा ā ि i ी ī ु u ू ū ृ r̥ ॄ r̥̄ ॢ l̥ ॣ l̥̄ े ē ै ai ो ō ौ au ॅ ĕ ॉ ŏ ॆ e ॊ o"
_SIGNS = "ं ṁ ँ m̐ ः ḥ ऽ ’ ॐ oṁ । . ॥ .. ॰ ."
_DIGITS = "०१२३४५६७८९"


def romanise(text: str, language: Language) -> str:
    """Writes a text in Latin letters; what is no letter of the language's script stays as it is.

    Args:
        text: In any normal form.
        language: Of the text. Latin text is returned unchanged.

    Raises:
        UserError: There is no table for the language's letters.
    """
    if language.script == "Latn":
        return text
    languages, write = _SCRIPTS.get(language.script, ("", str))
    if language.iso639_3 not in languages.split():
        known = ", ".join(
            f"{iso}_{script}" for script, (codes, _) in _SCRIPTS.items() for iso in codes.split()
        )
        raise UserError(
            f"corpus: romanise: true has no table for {language.name} ({language.code}); it has {known} (Latin stays as it is)"
        )
    return unicodedata.normalize("NFC", write(text))


def _table(pairs: str) -> dict[str, str]:
    words = unicodedata.normalize("NFD", pairs).split()
    return dict(zip(words[::2], words[1::2], strict=True))


_CYRILLIC_TABLE = _table(_CYRILLIC)
_GEORGIAN_TABLE = _table(_GEORGIAN)
_CONSONANT_TABLE, _SIGN_TABLE = _table(_CONSONANTS), _table(_VOWEL_SIGNS)
_OTHER_TABLE = _table(_VOWELS) | _table(_SIGNS) | {digit: str(n) for n, digit in enumerate(_DIGITS)}


def _cyrillic(text: str) -> str:
    """Accents that the table does not name stay on their letter: ё, ї, ў, ѓ, ќ."""
    whole = unicodedata.normalize("NFC", text)
    return "".join(_cyrillic_letter(letter) for letter in whole)


def _cyrillic_letter(letter: str) -> str:
    found = _CYRILLIC_TABLE.get(unicodedata.normalize("NFD", letter.lower()))
    if found is None:
        first, *accents = unicodedata.normalize("NFD", letter)
        base = _CYRILLIC_TABLE.get(first.lower())
        if base is None:
            return letter
        found, letter = base + "".join(accents), first
    return found[:1].upper() + found[1:] if letter.isupper() else found


def _georgian(text: str) -> str:
    """Headlines in capitals (Mtavruli) are lower case first: Georgian has no capitals within a text."""
    return "".join(_GEORGIAN_TABLE.get(letter, letter) for letter in text.lower())


_DEVANAGARI = re.compile(
    f"(?P<consonant>[{''.join(c for c in _CONSONANT_TABLE if len(c) == 1)}]़?)(?P<vowel>[{''.join(_SIGN_TABLE)}्]?)"
)


def _devanagari(text: str) -> str:
    """A consonant has the vowel of its sign, none before a virama, and else an a."""
    decomposed = unicodedata.normalize("NFD", text).replace("\u200c", "").replace("\u200d", "")

    def syllable(match: re.Match[str]) -> str:
        consonant, vowel = match["consonant"], match["vowel"]
        base = _CONSONANT_TABLE.get(consonant) or _CONSONANT_TABLE[consonant[0]]
        return base + _SIGN_TABLE.get(vowel, "" if vowel else "a")

    return "".join(
        _OTHER_TABLE.get(letter) or _SIGN_TABLE.get(letter, letter)
        for letter in _DEVANAGARI.sub(syllable, decomposed)
    )


# By script: the languages all of whose letters the table has, and the way to write them.
_SCRIPTS: dict[str, tuple[str, Callable[[str], str]]] = {
    "Cyrl": ("bel bos bul mkd rus srp ukr", _cyrillic),
    "Deva": ("awa bho gom hin mag mai mar npi san", _devanagari),
    "Geor": ("kat", _georgian),
}
