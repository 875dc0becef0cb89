"""Documents of the offline tasks, rendered from CLDR records: what `eval/tasks/cldr/*.yaml` call.

In the evaluation room, before the harness: each function makes one task's test split for one language.
Records are numbered from `FIRST_RECORD` on, far beyond those of any training corpus: none was trained on.

A base model cannot be asked, only made to continue. Every task is therefore a choice between continuations
that are all good text of the language, and only one of them fits.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from datasets import Dataset

from lape_ds.corpora.cldr import KINDS, Record, cycle, months, qualifies, sample_records, write
from lape_ds.errors import UserError
from lape_ds.languages import Language, find_language

FIRST_RECORD = 10**9  # recipes count theirs in millions
SEED = 0
NUM_CHOICES = 4
SOURCE_LANGUAGE = "eng_Latn"  # of translation
# Kinds whose content is a plain sequence, so that its first items are a shorter record of the same kind.
_SEQUENCES = tuple(kind for kind in KINDS if kind not in ("months", "weekdays"))

Item = TypeVar("Item")
Splits = dict[str, Dataset]


def bits_per_byte(*, language: str, num_documents: int, **_: Any) -> Splits:
    """Whole records, to be scored from the first byte to the last.

    Args:
        language: Any name or code.
        num_documents: How many.

    Raises:
        UserError: CLDR has too little of this language.
    """
    return _split({"text": record.text} for record in _records(_language(language), num_documents))


def topic(*, language: str, num_documents: int, **_: Any) -> Splits:
    """Which kind of record this is: its first half, then its own next parts or those of other kinds.

    The labels are continuations in the language, because a base model knows no names of kinds.

    Args:
        language: Any name or code.
        num_documents: How many.

    Raises:
        UserError: CLDR has too little of this language.
    """
    spoken = _language(language)
    halves = [_halve(spoken, record) for record in _records(spoken, num_documents)]

    def question(number: int, half: _Half) -> dict[str, Any]:
        others = _shuffled([other for other in halves if other.kind != half.kind], f"topic/{number}")
        wrong = {other.kind: half.space + other.following for other in others}  # one of each kind
        return _choice(number, half.opening, half.space + half.following, list(wrong.values()))

    return _split(question(number, half) for number, half in enumerate(halves))


def cloze(*, language: str, num_documents: int, **_: Any) -> Splits:
    """Which month or weekday comes next; the wrong ones are not named before.

    It asks for what any corpus teaches: unlike other tasks' records, the sequences are trained on.

    Args:
        language: Any name or code.
        num_documents: At most so many; there are 62 different questions.

    Raises:
        UserError: CLDR has too little of this language.
    """
    spoken = _language(language)
    comma = cycle(spoken, ["", ""])
    space = comma[len(comma.rstrip()) :]
    weekdays = [write(spoken, "weekdays", (day, 1, ())) for day in range(7)]
    asked = [  # the cycle from its first name on, and how many of it are shown
        (names[first:] + names[:first], shown)
        for names, most_shown in ((months(spoken), 5), (weekdays, 3))
        for shown in range(2, most_shown + 1)
        for first in range(len(names))
    ]

    def question(number: int, names: list[str], shown: int) -> dict[str, Any]:
        wrong = [space + name for name in _shuffled(names[shown + 1 :], f"cloze/{number}")]
        return _choice(number, cycle(spoken, names[:shown]) + comma.rstrip(), space + names[shown], wrong)

    chosen = _shuffled(asked, "cloze")[:num_documents]
    return _split(question(number, *one) for number, one in enumerate(chosen))


def translation(*, language: str, num_documents: int, **_: Any) -> Splits:
    """Which line says the same as the English one; the wrong ones are other records of the same kind.

    Args:
        language: Any name or code but English's.
        num_documents: How many.

    Raises:
        UserError: CLDR has too little of this language.
    """
    spoken, english = _language(language), _language(SOURCE_LANGUAGE)
    rounds = num_documents // len(_SEQUENCES) + 1
    drawn = list(_records(spoken, len(KINDS) * (2 * rounds + 30)))  # of each kind about 2 · rounds + 30
    short = {kind: [record.content[:2] for record in drawn if record.kind == kind] for kind in _SEQUENCES}

    def question(number: int) -> dict[str, Any]:
        kind = _SEQUENCES[number % len(_SEQUENCES)]
        content = short[kind][number // len(_SEQUENCES)]
        right = write(spoken, kind, content)
        texts = [write(spoken, kind, other) for other in _shuffled(short[kind], f"translation/{number}")]
        wrong = [text for text in dict.fromkeys(texts) if text != right]
        return _choice(number, write(english, kind, content) + "\n", right, wrong)

    return _split(question(number) for number in range(num_documents))


@dataclass(frozen=True)
class _Half:
    """The first half of a record, and its next two parts.

    Attributes:
        kind: The record's.
        opening: Ends with the separator, without its space.
        space: The space after the separator, if the language writes one.
        following: Two parts.
    """

    kind: str
    opening: str
    space: str
    following: str


def _halve(language: Language, record: Record) -> _Half:
    separator = "; " if "; " in record.text else cycle(language, ["", ""])
    parts = record.text.split(separator)
    half = len(parts) // 2
    bare = separator.rstrip()
    opening, following = separator.join(parts[:half]) + bare, separator.join(parts[half : half + 2])
    return _Half(record.kind, opening, separator[len(bare) :], following)


def _records(language: Language, count: int) -> Iterator[Record]:
    return sample_records(language, count=count, seed=SEED, first=FIRST_RECORD)


def _language(name: str) -> Language:
    language = find_language(name)
    if not qualifies(language):
        raise UserError(
            f"CLDR has too little of {language.name} ({language.code}) for its tasks; "
            "leave it out of --languages"
        )
    return language


def _choice(number: int, context: str, right: str, wrong: Sequence[str]) -> dict[str, Any]:
    """A question of `NUM_CHOICES`, whose right answer stands at each place equally often."""
    choices = list(wrong[: NUM_CHOICES - 1])
    assert len(choices) == NUM_CHOICES - 1, f"too few wrong answers to {context!r}"
    label = number % NUM_CHOICES
    choices.insert(label, right)
    return {"context": context, "choices": choices, "label": label}


def _shuffled(items: Sequence[Item], seed: str) -> list[Item]:
    """In an order that depends on `random()` alone, which Python promises to keep for a seed."""
    chance = random.Random(seed)
    return [items[place] for _, place in sorted((chance.random(), place) for place in range(len(items)))]


def _split(documents: Iterable[dict[str, Any]]) -> Splits:
    return {"test": Dataset.from_list(list(documents))}
