"""Do a language's neurons matter to it more than to the others? The score of an ablation, and how sure it is.

After the ablation, whose document-level likelihoods it takes; before tables and picture. Needs numpy alone beside these.

With d(k, l) the change of language l's bits per byte when the neurons of k are off, a ratio of sums over the documents of l:

    specificity(k) = d(k, k) - mean over l ≠ k of d(k, l)

and the overall score is its mean over the languages k that have neurons: the mean of the diagonal less the mean off it. What
a row does to all languages alike falls out. That some language's text suffers most whichever neurons are off does not, but
a control of the same size has it too: so what counts is LAPE's specificity less the control's. A language's random sets
count as their mean.

A language with fewer than 10 held-out documents tells too little of how its text varies: it has a score and no interval, and is
in no mean, neither over l nor over k. (Where no language has as many, the means are over all and nothing has an interval.)

Intervals are 95 %, symmetric, from the studentised bootstrap (evaluation/comparing/statistics.py says why), 10,000 resamples:

- **of a language**: the documents of every measured language are redrawn with replacement, as many as there are, each
  language's by themselves; the base and all rows and kinds share the draw, so that what two models make of one document
  stays together. The standard error is the linearised one of a ratio. Neurons, random seeds and languages are taken as they
  are: the interval is about other text of the same languages. It is not adjusted for there being many languages.
- **overall**, in two levels: the documents are redrawn as above, and of the languages that have neurons as many are drawn
  with replacement; a drawn one keeps its row, with all others in it. The standard error is that of a mean over languages. So
  this interval is about other text *and* other languages under test beside the same others; and about other seeds, since
  every language has random sets of its own. Of fewer than a dozen it is wide: with eight about twice Student's.

Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, sections 3.8 (two levels) and 5.2 (studentised);
Hall, On symmetric bootstrap confidence intervals, J. R. Stat. Soc. B 50, 1988; Cochran, Sampling Techniques, 1977, chapter 6
(ratio).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import compress
from statistics import fmean

import numpy as np

from lape_ds.analysis.intervals import NUM_RESAMPLES, ratios_and_variances, widths
from lape_ds.evaluation.comparing.differences import MIN_DOCUMENTS
from lape_ds.evaluation.comparing.statistics import Array, resamplings, studentised
from lape_ds.identification.ablation import AblatedRow, Ablation
from lape_ds.identification.ablation_rows import KINDS, Kind

CONTROLS: tuple[Kind, ...] = ("random", "most_active")


@dataclass(frozen=True)
class Estimate:
    """A score in bits per byte.

    Attributes:
        value: What was measured.
        half_width: Half of its 95 % interval; None where the resamples do not tell: too few documents or languages.
    """

    value: float
    half_width: float | None

    @property
    def is_positive(self) -> bool:
        """Whether the whole interval is above 0."""
        return self.half_width is not None and self.value > self.half_width


@dataclass(frozen=True, eq=False)
class Specificity:
    """The scores of an ablation.

    Attributes:
        changes: Per kind, language switched off and language measured: change in bits per byte, of random sets the mean.
        by_language: Per kind and language with neurons its specificity.
        over: Per control and language: the identified neurons' specificity less the control's.
        overall: Per kind the mean over languages.
        overall_over: Per control the same of `over`.
        too_few: Languages with too few documents to be in a mean or to have an interval.
        averaged: Languages over which the overall scores are means.
    """

    changes: Mapping[Kind, Mapping[str, Mapping[str, float]]]
    by_language: Mapping[Kind, Mapping[str, Estimate]]
    over: Mapping[Kind, Mapping[str, Estimate]]
    overall: Mapping[Kind, Estimate]
    overall_over: Mapping[Kind, Estimate]
    too_few: tuple[str, ...]
    averaged: tuple[str, ...]

    @classmethod
    def of(cls, ablation: Ablation, *, num_resamples: int = NUM_RESAMPLES) -> Specificity:
        """Computes them."""
        table = _Table.of(ablation)
        by_language, overall = _estimates(table, num_resamples)
        return cls(
            changes={kind: _changes(ablation, kind) for kind in KINDS},
            by_language=dict(zip(KINDS, by_language, strict=False)),
            over=dict(zip(CONTROLS, by_language[len(KINDS) :], strict=True)),
            overall=dict(zip(KINDS, overall, strict=False)),
            overall_over=dict(zip(CONTROLS, overall[len(KINDS) :], strict=True)),
            too_few=table.too_few,
            averaged=tuple(compress(table.rows, table.has_interval)) or table.rows,
        )

    def own(self, kind: Kind, code: str) -> float:
        """What a language's own text loses."""
        return self.changes[kind][code][code]

    def others(self, kind: Kind, code: str) -> float:
        """What the others lose in the mean when the language's neurons are off."""
        changes = self.changes[kind][code]
        return fmean(changes[other] for other in _others(changes, code, self.too_few))

    def hit_hardest(self, kind: Kind) -> int:
        """Of how many languages the own text loses most of all texts."""
        return sum(changes[code] == max(changes.values()) for code, changes in self.changes[kind].items())


def _others(languages: Iterable[str], code: str, too_few: Container[str]) -> list[str]:
    """With which a language is compared: all others with documents enough; all others, if none has."""
    others = [other for other in languages if other != code]
    return [other for other in others if other not in too_few] or others


def _changes(ablation: Ablation, kind: Kind) -> dict[str, dict[str, float]]:
    found = {}
    for code in ablation.row_languages:
        rows = rows_of(ablation, kind, code)
        found[code] = {
            other: fmean(ablation.change(row, other) for row in rows) for other in ablation.languages
        }
    return found


def rows_of(ablation: Ablation, kind: Kind, code: str) -> list[AblatedRow]:
    """The rows of one kind and language: several of random sets, else one."""
    return [row for row in ablation.rows if (row.ablated.kind, row.ablated.language) == (kind, code)]


@dataclass(frozen=True, eq=False)
class _Table:
    """What every document adds to the scores and to their differences: all are linear in it.

    Shapes: n documents of a measured language; C = Q · K columns: Q quantities (the kinds, then the differences to the controls)
    of each of the K languages with neurons.

    Attributes:
        rows: The K languages.
        bits: By measured language, `[n, C]`: bits by which the document costs more.
        num_bytes: By measured language, `[n]`.
    """

    rows: tuple[str, ...]
    bits: Mapping[str, Array]
    num_bytes: Mapping[str, Array]

    @classmethod
    def of(cls, ablation: Ablation) -> _Table:
        rows = ablation.row_languages
        bits = {}
        for code in ablation.languages:
            by_kind = {
                kind: np.stack([_bits(ablation, kind, row, code) for row in rows], axis=1) for kind in KINDS
            }
            differences = [by_kind["identified"] - by_kind[kind] for kind in CONTROLS]
            bits[code] = np.concatenate([*by_kind.values(), *differences], axis=1)
        num_bytes = {code: ablation.num_bytes[code].double().numpy() for code in ablation.languages}
        return cls(rows, bits, num_bytes)

    @property
    def num_columns(self) -> int:
        """C."""
        return next(iter(self.bits.values())).shape[1]

    @property
    def too_few(self) -> tuple[str, ...]:
        """Measured languages with too few documents."""
        return tuple(code for code, num_bytes in self.num_bytes.items() if len(num_bytes) < MIN_DOCUMENTS)

    @property
    def has_interval(self) -> list[bool]:
        """Of each of the K languages, whether documents tell how sure its score is: its own, and those of some other."""
        enough = self.bits.keys() - self.too_few
        return [row in enough and len(enough) > 1 for row in self.rows]

    def weights(self, code: str) -> Array:
        """How a measured language's changes go into the scores, `[C]`."""
        weights = []
        for row in self.rows:
            others = _others(self.bits, row, self.too_few)
            weights.append(1.0 if row == code else -1.0 / len(others) if code in others else 0.0)
        return np.tile(weights, self.num_columns // len(self.rows))

    def scores(self, draws: Mapping[str, Iterable[Array]], num_resamples: int) -> tuple[Array, Array]:
        """Scores and their variances, linearised, of resamples: `[num_resamples, C]` each.

        Args:
            draws: By measured language how often each document is in each resample, in pieces `[…, n]`.
            num_resamples: Of each.
        """
        values = np.zeros((num_resamples, self.num_columns))
        variances = np.zeros_like(values)
        for code, pieces in draws.items():
            start, weights = 0, self.weights(code)
            for counts in pieces:
                rows = slice(start, start + len(counts))
                ratios, variances_of_ratios = ratios_and_variances(
                    self.bits[code], self.num_bytes[code][:, None], counts
                )
                values[rows] += weights * ratios
                variances[rows] += weights**2 * variances_of_ratios
                start += len(counts)
        return values, variances


def _bits(ablation: Ablation, kind: Kind, row: str, code: str) -> Array:
    """By how many bits each document of a language costs more, in the mean of the random sets, `[n]`."""
    nats = [(found.nats[code] - ablation.base[code]).numpy() for found in rows_of(ablation, kind, row)]
    return np.mean(nats, axis=0) / math.log(2)


def _estimates(table: _Table, num_resamples: int) -> tuple[list[dict[str, Estimate]], list[Estimate]]:
    """Per quantity: of each language, and overall."""
    sizes = {code: len(num_bytes) for code, num_bytes in table.num_bytes.items()}
    values, variances = (
        part[0] for part in table.scores({code: [np.ones((1, size))] for code, size in sizes.items()}, 1)
    )
    by_quantity = np.split(values, table.num_columns // len(table.rows))
    known = np.array(table.has_interval)
    if not known.any():
        half_widths = np.full_like(values, np.inf)
        overall = [Estimate(float(mine.mean()), None) for mine in by_quantity]
    else:
        draws = {
            code: _draws(size, num_resamples, code)
            for code, size in sizes.items()
            if code not in table.too_few
        }
        resampled, resampled_variances = table.scores(draws, num_resamples)
        t = studentised(resampled - values, resampled_variances, variances)
        half_widths = np.where(np.tile(known, len(by_quantity)), widths(variances, t), np.inf)
        drawn = np.concatenate(list(_draws(int(known.sum()), num_resamples, "languages")))
        overall = [
            _mean_of_languages(mine[known], mine_resampled[:, known], drawn)
            for mine, mine_resampled in zip(
                by_quantity, np.split(resampled, len(by_quantity), axis=1), strict=True
            )
        ]
    by_language = [
        {code: _estimate(*found) for code, *found in zip(table.rows, mine, halves, strict=True)}
        for mine, halves in zip(by_quantity, np.split(half_widths, len(by_quantity)), strict=True)
    ]
    return by_language, overall


def _draws(size: int, num_resamples: int, name: str) -> Iterator[Array]:
    """Every language has draws of its own, also where two have equally many documents."""
    return resamplings(size, num_resamples=num_resamples, seed=zlib.crc32(name.encode()))


def _mean_of_languages(values_K: Array, resampled_BK: Array, drawn_BK: Array) -> Estimate:
    """The mean over languages; both levels of resampling are in `drawn_BK @ resampled`."""
    number, mean = len(values_K), values_K.mean()
    if number < 2:
        return Estimate(float(mean), None)
    means = (drawn_BK * resampled_BK).sum(axis=1) / number
    squares = (drawn_BK * (resampled_BK - means[:, None]) ** 2).sum(axis=1)
    variance = values_K.var(ddof=1) / number
    t = studentised((means - mean)[:, None], squares[:, None] / (number - 1) / number, np.array([variance]))
    return _estimate(mean, widths(np.array([variance]), t)[0])


def _estimate(value: float, half_width: float) -> Estimate:
    return Estimate(float(value), float(half_width) if math.isfinite(half_width) else None)
