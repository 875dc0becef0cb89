"""Real text with no download: the same record written in any of 146 languages from the tables of CLDR.

First room on the data's way, beside files and hub data sets: `reading.py` hands these records on as
documents, the offline evaluation tasks ask the same records for translations, kinds and next months.

A record is drawn from its seed and number alone, before any language is looked at, and babel writes it down;
record 17 of seed 0 therefore says the same in Maltese and in Georgian. Only names that every qualifying
locale has are drawn, so no name falls back to another language. Digits are Latin everywhere, as babel writes
dates.

Which locales qualify: at least 200 names of territories and 200 of languages, their own months and weekdays,
and all of `vocabulary.py` (146 languages with babel 2.18, all twelve target languages among them). Where a
locale has no long pattern of a unit (Maltese has hardly any), the short one is written: `3 km`.
"""

from __future__ import annotations

import calendar
import copy
import datetime
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, cached_property, lru_cache
from typing import Any, Literal, TypeVar

from babel import Locale, localedata
from babel.dates import format_date, format_skeleton, format_time, format_timedelta
from babel.languages import get_official_languages
from babel.lists import format_list
from babel.numbers import format_currency, format_decimal

from lape_ds.corpora.vocabulary import COMPARABLE, CURRENCIES, LANGUAGES, RELATIVE, TERRITORIES, UNITS
from lape_ds.errors import NoText
from lape_ds.languages import Language

# Changes whenever the same seed and number would say something else; part of a packed corpus's fingerprint.
CLDR_VERSION = 1

T = TypeVar("T")
_FEWEST_NAMES = 200
_FIRST_DAY = datetime.date(1900, 1, 1).toordinal()
_NUM_DAYS = datetime.date(2100, 1, 1).toordinal() - _FIRST_DAY
_MONDAY = datetime.date(2024, 1, 1)

# What a record says, without words: nested tuples of codes and numbers.
Content = tuple[Any, ...]


@dataclass(frozen=True)
class Record:
    """A record in one language.

    Attributes:
        id: Its number; with the seed it decides `kind` and `content` in every language.
        kind: What it is about, one of `KINDS`: the label of topic classification.
        content: What it says, without words; `write(language, kind, content)` says it in another language.
        text: The record in this language, one line, about 100 to 400 bytes in Latin script.
    """

    id: int
    kind: str
    content: Content
    text: str


def sample_records(language: Language, *, count: int, seed: int, first: int = 0) -> Iterator[Record]:
    """Writes records `first` to `first + count - 1` of a seed in one language.

    Raises:
        UserError: CLDR has too little of this language.
    """
    voice = _voice(language)
    for number in range(first, first + count):
        draw = _Draw(seed, number)
        kind = draw.pick(KINDS)
        content = _KINDS[kind][0](draw)
        yield Record(number, kind, content, _KINDS[kind][1](voice, content))


def write(language: Language, kind: str, content: Content) -> str:
    """Says a record's content in another language, word for word that language's record of the same number.

    Raises:
        UserError: CLDR has too little of this language.
    """
    return _KINDS[kind][1](_voice(language), content)


def months(language: Language) -> list[str]:
    """The twelve months from January on, as they stand alone (nominative).

    Raises:
        UserError: CLDR has too little of this language.
    """
    return [_voice(language).month(number) for number in range(12)]


def cycle(language: Language, names: Sequence[str]) -> str:
    """Joins names as the kinds `months` and `weekdays` do: by the comma of the language, with no `and`.

    Raises:
        UserError: CLDR has too little of this language.
    """
    return _voice(language).comma.join(names)


def qualifies(language: Language) -> bool:
    """Whether CLDR has enough names of this language (see the module's opening)."""
    if language.cldr is None:
        return False
    locale = _locale(language.cldr)
    territories = [str(code) for code in locale.territories if len(str(code)) == 2]
    return (
        min(len(territories), len(locale.languages)) >= _FEWEST_NAMES
        and set(TERRITORIES) <= set(territories)
        and set(LANGUAGES) <= set(locale.languages)
        and locale.months["format"]["wide"][1] != "M01"  # what CLDR's root says
        and locale.days["format"]["wide"][0] != "Mon"
    )


class _Locale(Locale):
    """A locale with data of its own.

    babel writes what an alias stands for into data that all locales share, so that after Chinese stand-alone
    months Welsh ones are Chinese too (babel's issue 1234). Reading only a copy, we do not cause that.
    """

    @cached_property
    def _data(self) -> localedata.LocaleDataDict:  # pyright: ignore[reportIncompatibleMethodOverride]
        data: dict[str | int | None, Any] = {**localedata.load(str(self))}
        return localedata.LocaleDataDict(copy.deepcopy(data))


@cache
def _locale(identifier: str) -> Locale:
    return _Locale.parse(identifier)


class _Draw:
    """Random choices of one record, by `random()` alone: Python promises to keep its sequence for a seed."""

    def __init__(self, seed: int, number: int) -> None:
        self._random = random.Random(f"{seed}/{number}").random

    def below(self, stop: int) -> int:
        return int(self._random() * stop)

    def between(self, first: int, last: int) -> int:
        return first + self.below(last - first + 1)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def several(self, items: Sequence[T], count: int) -> tuple[T, ...]:
        """`count` different ones, in the order drawn."""
        chosen: dict[int, T] = {}
        while len(chosen) < count:
            index = self.below(len(items))
            chosen.setdefault(index, items[index])
        return tuple(chosen.values())

    def repeat(self, fewest: int, most: int, draw: Callable[[], T]) -> tuple[T, ...]:
        return tuple(draw() for _ in range(self.between(fewest, most)))

    def day(self) -> int:
        """A day of 1900 to 2099, as `datetime.date.toordinal` counts."""
        return _FIRST_DAY + self.below(_NUM_DAYS)


class _Voice:
    """How one locale says things; what is said often is remembered."""

    def __init__(self, locale: Locale) -> None:
        self.locale = locale
        self.comma: str = locale.list_patterns["standard"]["middle"].replace("{0}", "").replace("{1}", "")
        self.number = lru_cache(100_000)(self._number)
        self.date = lru_cache(200_000)(self._date)
        self.month_of_year = lru_cache(5_000)(self._month_of_year)
        self.relative = lru_cache(5_000)(self._relative)
        self.time = lru_cache(1_500)(self._time)
        self.unit_patterns = cache(self._unit_patterns)

    def territory(self, code: str) -> str:
        return self.locale.territories[code]

    def language(self, code: str) -> str:
        return self.locale.languages[code]

    def month(self, number: int) -> str:
        """Stand-alone name; 0 is January."""
        return self.locale.months["stand-alone"]["wide"][number % 12 + 1]

    def weekday(self, number: int) -> str:
        """Stand-alone name; 0 is Monday."""
        return self.locale.days["stand-alone"]["wide"][number % 7]

    def names(self, names: Sequence[str]) -> str:
        """`a, b and c`."""
        return format_list(names, locale=self.locale)

    def money(self, currency: str, cents: int) -> str:
        return format_currency(Decimal(cents) / 100, currency, locale=self.locale)

    def measure(self, unit: str, amount: str) -> str:
        """`3.5 kilometres`; `amount` is a decimal number."""
        patterns = self.unit_patterns(unit)
        pattern = patterns.get(self.locale.plural_form(Decimal(amount)), patterns["other"])
        return pattern.replace("{0}", self.number(amount))

    def _unit_patterns(self, unit: str) -> dict[str, str]:
        """Plural form -> pattern, of the longest style that the locale has.

        babel's own `format_unit` writes `5 length-kilometer` where a locale lacks the style asked for, and
        has no public way to ask whether it does; hence the look into its data.
        """
        styles = self.locale._data["unit_patterns"][unit]
        return next(
            dict(styles[style]) for style in ("long", "short", "narrow") if "other" in styles.get(style, ())
        )

    def _number(self, amount: str) -> str:
        return format_decimal(Decimal(amount), locale=self.locale)

    def _date(self, day: int, style: Literal["full", "long", "medium"]) -> str:
        return format_date(datetime.date.fromordinal(day), style, locale=self.locale)

    def _month_of_year(self, year: int, month: int) -> str:
        return format_skeleton("yMMMM", datetime.datetime(year, month, 1), locale=self.locale)

    def _relative(self, unit: str, amount: int) -> str:
        """`in 3 days`, `3 days ago`."""
        seconds = next(seconds for name, seconds, _ in RELATIVE if name == unit)
        delta = datetime.timedelta(seconds=seconds * amount)
        return format_timedelta(delta, threshold=1, add_direction=True, locale=self.locale)

    def _time(self, minute: int) -> str:
        return format_time(datetime.time(*divmod(minute, 60)), "short", locale=self.locale)


@cache
def _voice(language: Language) -> _Voice:
    if language.cldr is None or not qualifies(language):
        raise NoText(
            f"corpus.source: CLDR has too little of {language.name} ({language.code}) to write records "
            f"in it; give it another source under corpus.per_language.{language.code}"
        )
    return _Voice(_locale(language.cldr))


@cache
def _official_languages() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Territory and its official languages, of those that every locale can name. Source: CLDR (babel)."""
    pairs = ((code, get_official_languages(code, de_facto=True)) for code in TERRITORIES)
    named = (
        (code, tuple(spoken for spoken in languages if spoken in LANGUAGES)) for code, languages in pairs
    )
    return tuple((code, languages) for code, languages in named if languages)


def _draw_dates(draw: _Draw) -> Content:
    return draw.repeat(4, 7, draw.day)


def _write_dates(voice: _Voice, days: Content) -> str:
    styles: tuple[Literal["full", "long", "medium"], ...] = ("full", "long", "medium")
    return _parts(voice.date(day, styles[place % 3]) for place, day in enumerate(days))


def _draw_times(draw: _Draw) -> Content:
    return draw.repeat(5, 9, lambda: (draw.below(7), 5 * draw.below(288)))


def _write_times(voice: _Voice, times: Content) -> str:
    return _parts(f"{voice.weekday(weekday)} {voice.time(minute)}" for weekday, minute in times)


def _draw_durations(draw: _Draw) -> Content:
    def one() -> tuple[str, int]:
        unit, _, most = draw.pick(RELATIVE)
        return unit, draw.between(1, most) * draw.pick((-1, 1))

    return draw.repeat(8, 12, one)


def _write_durations(voice: _Voice, durations: Content) -> str:
    return _parts(voice.relative(unit, amount) for unit, amount in durations)


def _draw_territories(draw: _Draw) -> Content:
    return draw.several(TERRITORIES, draw.between(8, 14))


def _write_territories(voice: _Voice, codes: Content) -> str:
    return voice.names([voice.territory(code) for code in codes])


def _draw_languages(draw: _Draw) -> Content:
    return draw.several(LANGUAGES, draw.between(9, 15))


def _write_languages(voice: _Voice, codes: Content) -> str:
    return voice.names([voice.language(code) for code in codes])


def _draw_official_languages(draw: _Draw) -> Content:
    return draw.several(_official_languages(), draw.between(5, 8))


def _write_official_languages(voice: _Voice, pairs: Content) -> str:
    return _parts(
        f"{voice.territory(territory)}: {voice.names([voice.language(code) for code in languages])}"
        for territory, languages in pairs
    )


def _draw_currencies(draw: _Draw) -> Content:
    def one(pair: str) -> tuple[str, str, int]:
        territory, currency = pair.split(":")
        return territory, currency, 5 * draw.between(1, 10 ** draw.between(2, 6))

    return tuple(one(pair) for pair in draw.several(CURRENCIES, draw.between(5, 8)))


def _write_currencies(voice: _Voice, amounts: Content) -> str:
    return _parts(
        f"{voice.territory(territory)}: {voice.money(currency, cents)}"
        for territory, currency, cents in amounts
    )


def _draw_units(draw: _Draw) -> Content:
    def one(unit: str) -> tuple[str, str]:
        whole = draw.between(1, 10 ** draw.between(1, 3))
        return unit, f"{whole}.{draw.between(1, 9)}" if draw.below(3) == 0 else str(whole)

    return tuple(one(unit) for unit in draw.several(UNITS, draw.between(6, 10)))


def _write_units(voice: _Voice, amounts: Content) -> str:
    return _parts(voice.measure(unit, amount) for unit, amount in amounts)


def _draw_months(draw: _Draw) -> Content:
    """First month (0 = January), how many, and then months of a year, some steps apart."""
    first_year, step, several = draw.between(1900, 2099), draw.between(1, 5), draw.between(4, 7)
    start = draw.below(12)
    dated = tuple(
        (first_year + (start + step * k) // 12, (start + step * k) % 12 + 1) for k in range(several)
    )
    return draw.below(12), draw.between(4, 8), dated


def _write_months(voice: _Voice, content: Content) -> str:
    first, count, dated = content
    names = voice.comma.join(voice.month(first + k) for k in range(count))
    return _parts([names, *(voice.month_of_year(year, month) for year, month in dated)])


def _draw_weekdays(draw: _Draw) -> Content:
    """First weekday (0 = Monday), how many, and then single days."""
    return draw.below(7), draw.between(4, 7), draw.repeat(3, 5, draw.day)


def _write_weekdays(voice: _Voice, content: Content) -> str:
    first, count, days = content
    names = voice.comma.join(voice.weekday(first + k) for k in range(count))
    dated = (f"{voice.date(day, 'medium')}: {voice.weekday((day - _MONDAY.toordinal()) % 7)}" for day in days)
    return _parts([names, *dated])


def _draw_counting(draw: _Draw) -> Content:
    def one(unit: str) -> tuple[str, int, int, int]:
        return unit, draw.between(0, 30), draw.between(1, 5), draw.between(3, 5)

    return tuple(one(unit) for unit in draw.several(UNITS, draw.between(3, 4)))


def _write_counting(voice: _Voice, rows: Content) -> str:
    return _parts(
        voice.comma.join(voice.measure(unit, str(first + step * k)) for k in range(count))
        for unit, first, step, count in rows
    )


def _draw_comparisons(draw: _Draw) -> Content:
    def one() -> tuple[str, int, str, int]:
        (small, small_size), (large, large_size) = sorted(
            draw.several(draw.pick(COMPARABLE), 2), key=lambda u: u[1]
        )
        amount = draw.between(1, 20)
        ratio = large_size // small_size
        other = amount * ratio if draw.below(2) else draw.between(1, 2 * amount * ratio)
        return large, amount, small, other

    return draw.repeat(4, 6, one)


def _write_comparisons(voice: _Voice, pairs: Content) -> str:
    sizes = {unit: size for family in COMPARABLE for unit, size in family}

    def one(large: str, amount: int, small: str, other: int) -> str:
        left, right = amount * sizes[large], other * sizes[small]
        sign = "=" if left == right else "<" if left < right else ">"
        return f"{voice.measure(large, str(amount))} {sign} {voice.measure(small, str(other))}"

    return _parts(one(*pair) for pair in pairs)


def _draw_month_lengths(draw: _Draw) -> Content:
    return draw.repeat(6, 9, lambda: (draw.between(1900, 2099), draw.between(1, 12)))


def _write_month_lengths(voice: _Voice, year_months: Content) -> str:
    def one(year: int, month: int) -> str:
        num_days = calendar.monthrange(year, month)[1]
        return f"{voice.month_of_year(year, month)}: {voice.measure('duration-day', str(num_days))}"

    return _parts(one(*year_month) for year_month in year_months)


def _parts(parts: Iterable[str]) -> str:
    return "; ".join(parts)


# Kind -> (draws what it says, writes it down in one language).
_KINDS: dict[str, tuple[Callable[[_Draw], Content], Callable[[_Voice, Content], str]]] = {
    "dates": (_draw_dates, _write_dates),
    "times": (_draw_times, _write_times),
    "durations": (_draw_durations, _write_durations),
    "territories": (_draw_territories, _write_territories),
    "languages": (_draw_languages, _write_languages),
    "official_languages": (_draw_official_languages, _write_official_languages),
    "currencies": (_draw_currencies, _write_currencies),
    "units": (_draw_units, _write_units),
    "months": (_draw_months, _write_months),
    "weekdays": (_draw_weekdays, _write_weekdays),
    "counting": (_draw_counting, _write_counting),
    "comparisons": (_draw_comparisons, _write_comparisons),
    "month_lengths": (_draw_month_lengths, _write_month_lengths),
}
# The kinds of record, in the order in which they are drawn.
KINDS: tuple[str, ...] = tuple(_KINDS)
