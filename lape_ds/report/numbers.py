"""Numbers of the page: each knows from where it is, or how it was computed from what stands in files.

After sources. A number read from a file has that place as its source, `a.json#/after`; what the page computes has the
computation, with places in braces: `{a.json#/after} - {a.json#/before}`, `mean({a.json#/1}, {a.json#/2})`,
`sum({metrics.jsonl#*/seconds})`. There are + - /, parentheses, numerals, the functions sum, mean, median and count (how many
there are; `count('better', …)`: how many are that), and a source with `*` stands for all that it names. So anybody, and a test,
can compute every number on the page anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from markupsafe import Markup

from lape_ds.report.sources import Place, Places

_MINUS = "−"


@dataclass(frozen=True)
class Number:
    """A number and where it is from.

    Attributes:
        value: In full precision.
        formula: As the module's docstring has it, a single place too in braces.
    """

    value: float
    formula: str

    @classmethod
    def at(cls, place: Place) -> Number:
        """Read at a place of a file."""
        assert isinstance(place.content, int | float), place.source
        return cls(place.content, f"{{{place.source}}}")

    def __sub__(self, other: Number) -> Number:
        return Number(self.value - other.value, f"{_grouped(self)} - {_grouped(other)}")

    def __add__(self, other: Number) -> Number:
        return Number(self.value + other.value, f"{_grouped(self)} + {_grouped(other)}")

    def __truediv__(self, other: Number) -> Number:
        return Number(self.value / other.value, f"{_grouped(self)} / {_grouped(other)}")

    def __neg__(self) -> Number:
        return Number(-self.value, f"-{_grouped(self)}")


def _grouped(number: Number) -> str:
    """In parentheses, unless it is a single place or one function's call."""
    is_one = re.fullmatch(r"\{[^{}]*\}|\w+\([^()]*\)|\d+", number.formula)
    return number.formula if is_one else f"({number.formula})"


def number_at(place: Place | None) -> Number | None:
    """Read at a place; None where there is none."""
    return None if place is None else Number.at(place)


def mean(numbers: Sequence[Number]) -> Number:
    """Of at least one number."""
    return _over("mean", fmean, numbers)


def _over(name: str, function: Callable[[list[float]], float], numbers: Sequence[Number]) -> Number:
    value = function([number.value for number in numbers])
    return Number(value, f"{name}({', '.join(number.formula for number in numbers)})")


def total(places: Places) -> Number:
    """The sum of what stands at many places; 0 of none."""
    return Number(sum(places.contents), f"sum({{{places.source}}})")


def middle(places: Places) -> Number:
    """The median of what stands at many places, of which there is at least one."""
    return Number(median(places.contents), f"median({{{places.source}}})")


def how_many(places: Places, what: str | None = None) -> Number:
    """How many places there are, or how many of them hold `what`."""
    if what is None:
        return Number(len(places.contents), f"count({{{places.source}}})")
    return Number(places.contents.count(what), f"count('{what}', {{{places.source}}})")


@dataclass(frozen=True)
class Shown:
    """A number as the page writes it.

    Attributes:
        number: The number.
        text: Its digits, rounded.
        unit: Behind them; the text times what the unit says is the value.
    """

    number: Number
    text: str
    unit: str = ""

    def __html__(self) -> Markup:
        value = Markup('<data value="{}" data-source="{}">{}</data>').format(
            repr(self.number.value), _as_source(self.number.formula), self.text
        )
        return value + (Markup("&nbsp;{}").format(self.unit) if self.unit else "")


def _as_source(formula: str) -> str:
    """A single place without its braces."""
    return formula[1:-1] if re.fullmatch(r"\{[^{}]*\}", formula) else formula


@dataclass(frozen=True)
class Quoted:
    """A text of a file as it stands there."""

    place: Place

    def __html__(self) -> Markup:
        return Markup('<span data-source="{}">{}</span>').format(self.place.source, self.place.content)


@dataclass(frozen=True)
class Code:
    """A command, a path or a name."""

    text: str

    def __html__(self) -> Markup:
        return Markup("<code>{}</code>").format(self.text)


@dataclass(frozen=True)
class Strong:
    """What a reader should see first."""

    part: Any

    def __html__(self) -> Markup:
        return Markup("<strong>{}</strong>").format(self.part)


@dataclass(frozen=True)
class Line:
    """Words, numbers and quotations one after the other."""

    parts: tuple[Any, ...]

    def __html__(self) -> Markup:
        return Markup("").join(self.parts)


def line(*parts: Any) -> Line:
    """E.g. `line("after ", count(steps), " steps")`."""
    return Line(parts)


def joined(parts: Iterable[Any], between: str = ", ") -> Line:
    """Parts with words between them."""
    found: list[Any] = []
    for part in parts:
        found += [between, part] if found else [part]
    return Line(tuple(found))


def fixed(number: Number, digits: int = 3) -> Shown:
    """With so many decimals."""
    return Shown(number, _minus(f"{number.value:,.{digits}f}"))


def signed(number: Number, digits: int = 3) -> Shown:
    """With so many decimals and a sign, but for what rounds to zero."""
    text = f"{number.value:+,.{digits}f}"
    return Shown(number, _minus(text) if float(text.replace(",", "")) else text[1:])


def half_width(number: Number, digits: int = 3) -> Line:
    """Behind a plus-minus sign."""
    return line(" ±", fixed(number, digits))


def count(number: Number) -> Shown:
    """A whole number, thousands set apart."""
    return Shown(number, f"{number.value:,.0f}")


def short(number: Number, unit: str = "") -> Shown:
    """Three digits, with k, M, G or T."""
    value = float(number.value)
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5 or prefix == "T":
            return Shown(number, f"{value:.3g}", f"{prefix}{unit}")
        value /= 1000
    raise AssertionError("the last prefix takes all")


def percent(number: Number, digits: int = 2) -> Shown:
    """A share."""
    return Shown(number, _minus(f"{100 * number.value:.{digits}f}"), "%")


def general(number: Number, digits: int = 4) -> Shown:
    """So many significant digits, as short as can be: settings such as learning rates."""
    return Shown(number, _minus(re.sub(r"e([-+])0", r"e\1", f"{number.value:.{digits}g}")))


def probability(number: Number) -> Shown:
    """A p; of tiny ones the power of ten."""
    value = number.value
    return Shown(number, _minus(f"{value:.4f}" if value >= 1e-4 or value == 0 else f"{value:.0e}"))


def duration(number: Number) -> Shown:
    """Seconds, in the unit that fits."""
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if number.value >= 2 * seconds:
            return Shown(number, f"{number.value / seconds:.1f}", unit)
    return Shown(number, f"{number.value:.1f}", "s")


def _minus(text: str) -> str:
    return text.replace("-", _MINUS)
