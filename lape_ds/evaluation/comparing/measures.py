"""What a document contributes to a score: numbers whose sums over documents give the score again.

Between the samples and the resampling. A resample of documents is then a weighted sum, and a score of ten thousand
resamples a function of ten thousand rows of sums. Shapes: n documents, k numbers of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from lape_ds.evaluation.comparing.statistics import Array
from lape_ds.evaluation.translation_metrics import require_spbleu

_CHRF_BETA = 2
_BLEU_ORDERS = 4
_CORPUS_METRICS = ("chrf", "chrf++", "bleu", "spbleu")  # as the harness and our tasks call them


@dataclass(frozen=True)
class Measure:
    """How sums over documents become a score.

    Attributes:
        value: Sums `[…, k]` to scores `[…]`.
        is_accuracy: Whether every document is right or wrong, 1 or 0.
    """

    value: Callable[[Array], Array]
    is_accuracy: bool = False

    @property
    def is_ratio(self) -> bool:
        """Whether it is the ratio of two sums, the second of which no model changes: documents or their bytes."""
        return self.value is ratio


class NoMeasure(Exception):
    """The score is not made of documents that can be resampled; says why."""


def measured(metric: str, values: Sequence[Any]) -> tuple[Measure, Array]:
    """The measure of a metric, and what each document contributes, float64 `[n, k]`.

    Args:
        metric: The harness's name of it.
        values: Per document, as in the samples: a number, or a pair that the metric makes a score of.

    Raises:
        NoMeasure: It is another kind of metric.
    """
    if metric == "bits_per_byte":
        pairs = np.array(values, dtype=np.float64).reshape(-1, 2)
        return Measure(ratio), np.stack([pairs[:, 0] / -math.log(2), pairs[:, 1]], axis=1)
    if metric in _CORPUS_METRICS:
        return Measure(_corpus_value(metric)), _segments(metric, values)
    if all(isinstance(value, bool | int | float) for value in values):
        numbers = np.array(values, dtype=np.float64)
        binary = bool(((numbers == 0) | (numbers == 1)).all())
        return Measure(ratio, binary), np.stack([numbers, np.ones_like(numbers)], axis=1)
    raise NoMeasure("scored over all documents at once")


def ratio(sums: Array) -> Array:
    """A mean, or bits per byte."""
    return sums[..., 0] / sums[..., 1]


def chrf(sums: Array) -> Array:
    """chrF, or chrF++, 0 to 100, of sums of (hypothesis, reference, match) counts of each order.

    Source: Popović, chrF++: words helping character n-grams, WMT 2017; sacrebleu's effective order.
    """
    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    hypothesis, reference, match = counts[..., 0], counts[..., 1], counts[..., 2]
    effective = (hypothesis > 0) & (reference > 0)
    num = np.maximum(effective.sum(axis=-1), 1)
    precision = np.where(effective, match / np.maximum(hypothesis, 1), 0.0).sum(axis=-1) / num
    recall = np.where(effective, match / np.maximum(reference, 1), 0.0).sum(axis=-1) / num
    factor = _CHRF_BETA**2
    divisor = factor * precision + recall
    return 100 * (1 + factor) * precision * recall / np.where(divisor > 0, divisor, 1.0)


def bleu(sums: Array) -> Array:
    """BLEU, 0 to 100, of sums of lengths (hypothesis, reference), matches and n-grams of each order.

    Source: Papineni et al., ACL 2002; smoothing `exp` of sacrebleu (Chen and Cherry, WMT 2014, method 3).
    """
    length, reference = sums[..., 0], sums[..., 1]
    match, total = sums[..., 2 : 2 + _BLEU_ORDERS], sums[..., 2 + _BLEU_ORDERS :]
    halvings = np.cumsum(match == 0, axis=-1)  # each order without a match counts half of the one before
    share = np.where(match > 0, match, 0.5**halvings) / np.maximum(total, 1)
    brevity = np.exp(np.minimum(0.0, 1 - reference / np.maximum(length, 1e-9)))
    scores = 100 * brevity * np.exp(np.log(share).mean(axis=-1))
    return np.where((total > 0).all(axis=-1) & (match > 0).any(axis=-1), scores, 0.0)


def _corpus_value(metric: str) -> Callable[[Array], Array]:
    return chrf if metric.startswith("chrf") else bleu


@lru_cache(maxsize=1)  # a task's models are read one after another, with the same references
def _scorer(metric: str, streams: tuple[tuple[str | None, ...], ...]) -> CHRF | BLEU:
    """With the n-grams of the references: the first one of every document, the second one where there is one."""
    references: Any = streams
    if metric.startswith("chrf"):
        return CHRF(word_order=metric.count("+"), references=references)
    if metric == "spbleu":
        require_spbleu()
    return BLEU(tokenize="flores200" if metric == "spbleu" else None, references=references)


def _segments(metric: str, pairs: Sequence[Any]) -> Array:
    """Counts of each document by sacrebleu, from pairs (reference, hypothesis)."""
    references = [[reference] if isinstance(reference, str) else reference for reference, _ in pairs]
    hypotheses = [text if isinstance(text, str) else text[0] for _, text in pairs]
    scorer = _scorer(metric, tuple(zip_longest(*references)))
    # What its own paired significance tests resample; there is no public name for it.
    return np.array(scorer._extract_corpus_statistics(hypotheses, None), dtype=np.float64)
