"""The stability of a selection as text: `lape-ds neurons stability`.

After neurons/stability.py, whose figures it shows; the picture is drawn in stability_pictures.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import median

from lape_ds.neurons.stability import CURVE, SURE, UNSURE, LanguageStability, Stability

_EVERY_LANGUAGE = 20  # of more the text shows a summary and the least stable ones
_STEPS = tuple(f"{a}→{b}" for a, b in pairwise(CURVE))


def stability_lines(stability: Stability) -> Iterator[str]:
    """For a terminal of 100 columns."""
    languages = stability.languages
    yield (
        f"{stability.model_id}: {stability.method}; Jaccard of the set from so many of 16 buckets to the next; "
        f"{stability.num_resamples} resamples"
    )
    yield _line(
        "language", "tokens", "neurons", _STEPS, "resampled (95 %)", ("sure", f">{SURE}", f"<{UNSURE}")
    )
    if len(languages) > _EVERY_LANGUAGE:
        yield _line("median", *_medians(languages))
        yield f"the {_EVERY_LANGUAGE} least stable of {len(languages)}:"
        languages = least_stable(stability, _EVERY_LANGUAGE)
    for one in languages:
        yield _line(one.code, *_cells(one))
    yield "8→16: half of the documents against all, about what all of them are to endless text"
    yield f"sure: mean confidence of the neurons, and how many have one above {SURE}, below {UNSURE}"


def least_stable(stability: Stability, number: int) -> list[LanguageStability]:
    """Those whose sets from half and from all documents agree least."""
    return sorted(stability.languages, key=lambda one: one.half.jaccard)[:number]


def _line(
    name: str, tokens: str, neurons: str, steps: Sequence[str], resampled: str, sure: Sequence[str]
) -> str:
    curve = "".join(f"{step:>6}" for step in steps)
    return f"{name:11}{tokens:>12}{neurons:>8} {curve}{resampled:>19}" + "".join(
        f"{cell:>7}" for cell in sure
    )


def _cells(one: LanguageStability) -> tuple[str, str, list[str], str, list[str]]:
    steps = [_share(point.jaccard_to_next) for point in one.curve[:-1]]
    spread, sure = one.resampled, one.summary
    resampled = "–" if spread is None else f"{spread.mean:.3f} ({spread.low:.2f}–{spread.high:.2f})"
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
        f"{median(means):.3f}" if means else "–",
        cells,
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
