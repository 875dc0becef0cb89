"""The stability of a selection as text: `lape-ds neurons stability`.

After the measuring in lape_ds/neurons, whose figures it shows; the picture is drawn in stability_pictures.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median

from lape_ds.neurons.stability import CURVE, SURE, UNSURE, LanguageStability, Stability
from lape_ds.recipe import IdentifySection

_EVERY_LANGUAGE = 20  # of more the text shows a summary and the least stable ones
_STEPS = tuple(f"{a}→{b}" for a, b in pairwise(CURVE))


def stability_lines(stability: Stability) -> Iterator[str]:
    """For a terminal of 80 columns."""
    languages = stability.languages
    yield f"{stability.model_id}: {stability.method}, {stability.num_resamples} resamples"
    yield _line("language", "tokens", "neurons", _STEPS, "resampled 95 %", ("sure", f">{SURE}", f"<{UNSURE}"))
    if len(languages) > _EVERY_LANGUAGE:
        yield _line("median", *_medians(languages))
        yield f"the {_EVERY_LANGUAGE} least stable of {len(languages)}:"
        languages = least_stable(stability, _EVERY_LANGUAGE)
    for one in languages:
        yield _line(one.code, *_cells(one))
    yield "1→2 and so on: Jaccard of the sets from so many of 16 buckets of documents"
    yield "8→16: half of the documents against all, about what all are to endless text"
    yield f"sure: mean confidence of the neurons; how many have one above {SURE}, below {UNSURE}"


def knob_lines(section: IdentifySection, *, without_recipe: bool) -> Iterator[str]:
    """By which knobs was selected, and where they come from if no recipe says them."""
    names = ["top_rate", *(["filter_rate", "activation_bar_ratio"] if "lape" in section.method else [])]
    yield "knobs: " + ", ".join(f"{name} {getattr(section, name)}" for name in names)
    if without_recipe:
        yield "(as published where not overridden; give a recipe to have its own)"


def least_stable(stability: Stability, number: int) -> list[LanguageStability]:
    """Those whose sets from half and from all documents agree least."""
    return sorted(stability.languages, key=lambda one: one.half.jaccard)[:number]


def _line(
    name: str, tokens: str, neurons: str, steps: Sequence[str], resampled: str, sure: Sequence[str]
) -> str:
    curve = "".join(f"{step:>5}" for step in steps)
    return f"{name:8}{tokens:>12}{neurons:>8}{curve}{resampled:>15}" + "".join(f"{cell:>5}" for cell in sure)


def _cells(one: LanguageStability) -> tuple[str, str, list[str], str, list[str]]:
    steps = [_share(point.jaccard_to_next) for point in one.curve[:-1]]
    spread, sure = one.resampled, one.summary
    resampled = (
        "–" if spread is None else f"{_share(spread.mean)} ({_share(spread.low, 2)}–{_share(spread.high, 2)})"
    )
    cells = ["–"] * 3 if sure is None else [_share(sure.mean), f"{sure.num_sure:,}", f"{sure.num_unsure:,}"]
    return f"{one.curve[-1].num_tokens:,}", f"{one.half.num_neurons:,}", steps, resampled, cells


def _medians(
    languages: Sequence[LanguageStability],
) -> tuple[str, str, list[str], str, list[str]]:
    steps = [
        _share(median(one.curve[step].jaccard_to_next or 0.0 for one in languages))
        for step in range(len(_STEPS))
    ]
    means = [one.resampled.mean for one in languages if one.resampled is not None]
    sure = [one.summary for one in languages if one.summary is not None]
    cells = ["–"] * 3
    if sure:
        cells = [
            _share(median(one.mean for one in sure)),
            f"{median(one.num_sure for one in sure):,.0f}",
            f"{median(one.num_unsure for one in sure):,.0f}",
        ]
    return (
        f"{median(one.curve[-1].num_tokens for one in languages):,.0f}",
        f"{median(one.half.num_neurons for one in languages):,.0f}",
        steps,
        _share(median(means)) if means else "–",
        cells,
    )


def _share(value: float | None, digits: int = 3) -> str:
    """A share of 1 in as many characters as digits and a point: .948, 1.00."""
    return "–" if value is None else f"{value:.{digits}f}".removeprefix("0")[: digits + 1]
