"""How sure a selection is: the curve of agreement over ever more text, and a bootstrap over documents.

Beside selection, from the same counts, without a model. Counts are kept in 16 buckets by document hash, so that half of the
buckets is a random half of the documents, and 16 draws of buckets with replacement stand for documents drawn anew.

What is told of a set S of all n documents:

- The curve: the sets of the first 1, 2, 4, 8 and 16 buckets, and the Jaccard similarity of each to the next. Its last point,
  half against all, says how near S is to the set of endless text: an average over n/2 of n documents differs from that over n
  with the variance with which that over n differs from the truth.
- The bootstrap: each resample draws 16 of the 16 buckets with replacement, for every language by itself, since languages' texts
  are samples of their own (`draw_buckets`). The same selection from the resampled counts gives a neuron's confidence, the share
  of resamples in which it is selected for the language, and the Jaccard similarity of resamples to S.

Both speak of text like that which was counted, no other. Text is read in the order of its source, and a budget takes the first
documents: "all documents" are those, "endless text" is more of their kind, and at an early round of `stable_at` both halves are
of the first documents. Where a source is sorted, by topic or site, say, later text may bring another set, which neither the curve
nor the bootstrap can tell; shuffle such a source.

A language without a token in a sample has probabilities of 0 there, hence no neuron.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lape_ds.corpora.splitting import NUM_BUCKETS
from lape_ds.distributed.host_memory import available_memory
from lape_ds.errors import UserError
from lape_ds.neurons.counts import INT32_MAX, Counts, CountSettings, CountsFiles
from lape_ds.neurons.probabilities import Probabilities
from lape_ds.neurons.selection import check_comparable, select_from_table
from lape_ds.recipe import IdentifySection
from lape_ds.runlog import Progress

LoadCounts = Callable[
    [], Iterable[Counts]
]  # every call goes through all languages in order, one in memory at a time
Sample = Callable[[str], Sequence[int]]  # language -> how often each of the 16 buckets is taken

CURVE = (1, 2, 4, 8, NUM_BUCKETS)  # buckets
INTERVAL = (0.025, 0.975)
SURE, UNSURE = 0.9, 0.5  # confidences of which is told how many neurons are above, below
_LEAST_BYTES_AT_ONCE = 2**30  # of totals of several samples, for one pass through the counts


@dataclass(frozen=True)
class Agreement:
    """Of a language's set from half of the documents with that from all.

    Attributes:
        jaccard: |A ∩ B| / |A ∪ B|; 1 where both are empty.
        num_neurons: In the set from all documents.
    """

    jaccard: float
    num_neurons: int

    def is_stable(self, at: float) -> bool:
        """Whether more text would change little. A set without neurons is not stable: more text may bring some."""
        return self.num_neurons > 0 and self.jaccard >= at


@dataclass(frozen=True)
class CurvePoint:
    """The selection from the first `num_buckets` buckets.

    Attributes:
        num_buckets: Of every language alike.
        num_tokens: Of this language in them.
        num_neurons: Of this language.
        jaccard_to_next: Similarity to the set of the next point; None at the last.
        jaccard_to_all: Similarity to the set of the last point.
    """

    num_buckets: int
    num_tokens: int
    num_neurons: int
    jaccard_to_next: float | None
    jaccard_to_all: float


@dataclass(frozen=True)
class Resampled:
    """Jaccard similarity of the resamples' sets to the set: the mean, and where 95 % of them lie."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ConfidenceSummary:
    """Of a language's neurons, or of several languages': the mean confidence, how many are sure and how many are not."""

    mean: float
    num_sure: int  # above SURE
    num_unsure: int  # below UNSURE

    @classmethod
    def of(cls, confidence: Tensor) -> ConfidenceSummary | None:
        """From float32 `[n]`; None where there is no neuron."""
        if not len(confidence):
            return None
        return cls(
            float(confidence.double().mean()),
            int((confidence > SURE).sum()),
            int((confidence < UNSURE).sum()),
        )

    def as_json(self) -> dict[str, float]:
        """For machines."""
        return {"mean": self.mean, f"above_{SURE}": self.num_sure, f"below_{UNSURE}": self.num_unsure}


@dataclass(frozen=True, eq=False)
class LanguageStability:
    """One language's.

    Attributes:
        code: The language.
        curve: Points of `CURVE`.
        resampled: None without resamples.
        confidence: float32 `[n]` beside the set's neurons; None without resamples.
    """

    code: str
    curve: tuple[CurvePoint, ...]
    resampled: Resampled | None
    confidence: Tensor | None

    @property
    def half(self) -> Agreement:
        """Of half the documents with all."""
        return Agreement(self.curve[-2].jaccard_to_all, self.curve[-1].num_neurons)

    @property
    def summary(self) -> ConfidenceSummary | None:
        """Of the confidences; None without resamples, or without neurons."""
        return None if self.confidence is None else ConfidenceSummary.of(self.confidence)


@dataclass(frozen=True, eq=False)
class Stability:
    """Of all languages of a selection, in order."""

    model_id: str
    method: str
    num_resamples: int
    seed: int
    languages: tuple[LanguageStability, ...]

    @property
    def confidence(self) -> dict[str, Tensor] | None:
        """Per language, as `NeuronSet.confidence` takes it; None without resamples."""
        found = {one.code: one.confidence for one in self.languages if one.confidence is not None}
        return found if self.num_resamples else None

    def as_json(self) -> dict[str, Any]:
        """For machines; neurons' own confidences stand in the neuron set."""
        return {
            "schema_version": 1,
            "model_id": self.model_id,
            "method": self.method,
            "num_resamples": self.num_resamples,
            "seed": self.seed,
            "languages": {one.code: _language_json(one) for one in self.languages},
        }


def half_agreement(section: IdentifySection, load: LoadCounts) -> dict[str, Agreement]:
    """How much every language's set from the first half of the buckets is like that from all.

    Args:
        section: Which method, and its knobs.
        load: The counts; read once.

    Raises:
        UserError: A method that cannot be looked at in this way (`check_method`), or no or unlike counts.
    """
    samples = [_first(CURVE[-2]), _first(CURVE[-1])]
    half, everything = _selections(section, load, samples, at_once=len(samples))
    return {
        code: Agreement(_jaccard(half.neurons[code], neurons), len(neurons))
        for code, neurons in everything.neurons.items()
    }


def measure_stability(section: IdentifySection, load: LoadCounts, *, seed: int) -> Stability:
    """The curve and the bootstrap.

    Args:
        section: Which method, its knobs, and how many resamples.
        load: The counts. Read once for as many samples as fit into a quarter of the free memory, or a gigabyte, if that is more.
        seed: Of the resamples. The same seed draws the same for a language, whatever the others.

    Raises:
        UserError: As `half_agreement`.
    """
    number = section.bootstrap_resamples
    samples = [_first(buckets) for buckets in CURVE]
    samples += [partial(draw_buckets, seed, resample) for resample in range(number)]
    with Progress("selecting from samples", total=len(samples), unit="samples") as bar:
        selections = _counted(_selections(section, load, samples), bar)
        curve = list(islice(selections, len(CURVE)))
        full = curve[-1]
        times = {code: torch.zeros(len(neurons)) for code, neurons in full.neurons.items()}
        similar: dict[str, list[float]] = {code: [] for code in times}
        for resampled in selections:
            for code, neurons in full.neurons.items():
                times[code] += torch.isin(neurons, resampled.neurons[code], assume_unique=True)
                similar[code].append(_jaccard(resampled.neurons[code], neurons))
    languages = [
        LanguageStability(
            code,
            _curve_of(code, curve),
            _summarised(similar[code]) if number else None,
            times[code] / number if number else None,
        )
        for code in full.neurons
    ]
    return Stability(full.model_id, section.method, number, seed, tuple(languages))


def measure_files(section: IdentifySection, paths: Sequence[Path], *, seed: int) -> Stability:
    """`measure_stability` of files of counts, one language each.

    Raises:
        UserError: As there, or a file is none.
    """
    return measure_stability(section, CountsFiles(paths), seed=seed)


def check_method(section: IdentifySection) -> None:
    """Makes sure that samples of the documents can be selected from.

    Raises:
        UserError: They cannot, since sums of activations are not kept by bucket.
    """
    if section.method == "mean_activation":
        raise UserError(
            "identify.method=mean_activation has no measure of stability: sums of activations are not kept by document; "
            "allowed: lape, family_lape, probability"
        )


@dataclass(frozen=True)
class _Selection:
    """From one sample: per language int64 `[n]`, layer · I + index, sorted; and how many tokens were in it."""

    neurons: Mapping[str, Tensor]
    tokens: Mapping[str, int]
    model_id: str


@dataclass
class _Totals:
    """One sample's counts of all languages, as they come."""

    sample: Sample
    active: list[Tensor] = field(default_factory=list)  # [N] each
    tokens: list[int] = field(default_factory=list)

    def add(self, counts: Counts) -> None:
        weights = self.sample(counts.settings.language)
        self.active.append(_weighted_sum(counts, weights))
        self.tokens.append(_weighted_tokens(counts, weights))


def _selections(
    section: IdentifySection, load: LoadCounts, samples: Sequence[Sample], *, at_once: int = 1
) -> Iterator[_Selection]:
    """From one sample after the other; several go through the counts together where their totals take little memory.

    The first `at_once` do so before anything is known of their size.
    """
    check_method(section)
    waiting = iter(samples)
    while group := [_Totals(sample) for sample in islice(waiting, at_once)]:
        settings, shape = _add_up(load, group)
        codes = [settings_k.language for settings_k in settings]
        for totals in group:
            # A language without tokens has no active neuron either: 0 of 1, not 0 of 0.
            divisors = tuple(max(1, tokens) for tokens in totals.tokens)
            table = Probabilities(tuple(totals.active), divisors, shape[0])
            selected = select_from_table(section, table, codes)
            neurons = [indices[:, 0].long() * shape[1] + indices[:, 1].long() for indices in selected]
            yield _Selection(
                dict(zip(codes, neurons, strict=True)),
                dict(zip(codes, totals.tokens, strict=True)),
                settings[0].model_id,
            )
        at_once = max(1, _bytes_at_once() // sum(active.nbytes for active in group[0].active))


def _bytes_at_once() -> int:
    """Reading takes longer than selecting: of 300 languages of a 12B model a pass goes through 11 GB for each 0.7 GB of totals.

    The rest of the memory is left to the files, which are read again and again.
    """
    return max(_LEAST_BYTES_AT_ONCE, available_memory() // 4)


def _counted(selections: Iterator[_Selection], bar: Progress) -> Iterator[_Selection]:
    for selection in selections:
        bar.advance()
        yield selection


def _add_up(load: LoadCounts, group: Sequence[_Totals]) -> tuple[list[CountSettings], torch.Size]:
    """One pass through the counts; (the languages' settings, layers × neurons)."""
    settings: list[CountSettings] = []
    shape = torch.Size((0, 0))
    for counts in load():
        settings.append(counts.settings)
        check_comparable(settings[0], counts.settings)
        shape = counts.active.shape[1:]
        for totals in group:
            totals.add(counts)
    if not settings:
        raise UserError("no counts to select neurons from; count some with `lape-ds identify`")
    return settings, shape


def _weighted_tokens(counts: Counts, weights: Sequence[int]) -> int:
    return sum(weight * tokens for weight, tokens in zip(weights, counts.tokens.tolist(), strict=True))


def _weighted_sum(counts: Counts, weights: Sequence[int]) -> Tensor:
    """Tokens on which each neuron was active, each bucket taken so often, `[N]`; int32 where that holds them.

    Bucket by bucket into one sum: no product of all buckets is made, and a bucket that is not taken is not read.
    """
    active = counts.active.flatten(1)
    wide = _weighted_tokens(counts, weights) > INT32_MAX
    total = torch.zeros(active.shape[1], dtype=torch.int64 if wide else torch.int32)
    for weight, bucket in zip(weights, active, strict=True):
        if weight:
            total.add_(bucket, alpha=weight)
    return total


def _first(num_buckets: int) -> Sample:
    """The first buckets, once each, of every language."""
    weights = [1] * num_buckets + [0] * (NUM_BUCKETS - num_buckets)
    return lambda code: weights


def draw_buckets(seed: int, resample: int, code: str) -> list[int]:
    """How often each bucket is in a resample of a language: 16 draws of the 16, with replacement.

    Args:
        seed: As `measure_stability` has it.
        resample: Its number, from 0.
        code: The language; others' draws are independent of its.

    Returns:
        16 numbers that sum to 16.
    """
    generator = random.Random(f"{seed}/{resample}/{code}")  # the same on every machine
    drawn = Counter(generator.choices(range(NUM_BUCKETS), k=NUM_BUCKETS))
    return [drawn[bucket] for bucket in range(NUM_BUCKETS)]


def _jaccard(first: Tensor, second: Tensor) -> float:
    """|A ∩ B| / |A ∪ B| of sorted int64 `[n]`; 1 where both are empty: they are the same set."""
    shared = int(torch.isin(first, second, assume_unique=True).sum())
    either = len(first) + len(second) - shared
    return shared / either if either else 1.0


def _curve_of(code: str, curve: Sequence[_Selection]) -> tuple[CurvePoint, ...]:
    sets = [selection.neurons[code] for selection in curve]
    following = [*sets[1:], None]
    return tuple(
        CurvePoint(
            num_buckets,
            selection.tokens[code],
            len(neurons),
            None if after is None else _jaccard(neurons, after),
            _jaccard(neurons, sets[-1]),
        )
        for num_buckets, selection, neurons, after in zip(CURVE, curve, sets, following, strict=True)
    )


def _summarised(jaccards: Sequence[float]) -> Resampled:
    low, high = np.quantile(jaccards, INTERVAL)
    return Resampled(fmean(jaccards), float(low), float(high))


def _language_json(one: LanguageStability) -> dict[str, Any]:
    return {
        "tokens": one.curve[-1].num_tokens,
        "neurons": one.half.num_neurons,
        "half_agreement": one.half.jaccard,
        "curve": [asdict(point) for point in one.curve],
        "resampled": None if one.resampled is None else asdict(one.resampled),
        "confidence": None if one.summary is None else one.summary.as_json(),
    }
