"""Kinds of values that several sections of a recipe have: languages by any of their names, amounts of text.

Below the sections.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, PositiveInt

from lape_ds.languages import find_language

Value = TypeVar("Value")


def _language_code(text: object) -> str:
    if not isinstance(text, str):
        raise ValueError(f"must be a language's code or English name, not {text!r}")
    return find_language(text).code


def _distinct(codes: list[str]) -> list[str]:
    twice = {code for code in codes if codes.count(code) > 1}
    if twice:
        raise ValueError(f"{', '.join(sorted(twice))} named twice")
    return codes


def _distinct_keys(by_language: Any) -> Any:
    """Refuses `{mt: …, mlt_Latn: …}`, of which one would be lost."""
    if isinstance(by_language, dict):
        _distinct([_language_code(key) for key in by_language])
    return by_language


# Any name of a language becomes its canonical code, e.g. "mt" -> "mlt_Latn".
LanguageCode = Annotated[str, BeforeValidator(_language_code)]
LanguageCodes = Annotated[list[LanguageCode], AfterValidator(_distinct)]
ByLanguage = Annotated[dict[LanguageCode, Value], BeforeValidator(_distinct_keys)]
TokenBudget = PositiveInt | Literal["all"]
