"""Two models with a known difference, measured on few documents: what the promised error rates are shown on.

Each function draws one task of another kind: documents are of unequal length, and what a model changes is spread over
them evenly, skewed or rarely. With no gain, the score over all documents that there are is the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from lape_ds.evaluation.comparing.differences import Estimate, Paired, estimate
from lape_ds.evaluation.comparing.measures import Measure, chrf, ratio
from lape_ds.evaluation.comparing.statistics import Array

NUM_MODELS = 20  # of each task: their differences from the base are independent
SIZES = (40, 100, 200)  # documents
_ORDERS = 8  # chrF++: six of characters, two of words


class Draw(Protocol):
    """Makes a base and `NUM_MODELS` models that are better by `gain`."""

    def __call__(self, rng: np.random.Generator, size: int, *, gain: float = 0.0) -> Paired: ...


def right_or_wrong(rng: np.random.Generator, size: int, *, gain: float = 0.0) -> Paired:
    """Half of the base's answers are right; a share of 0.1 to 0.4 changes, `gain` more of the wrong, less of the right."""
    base = rng.integers(2, size=size).astype(float)
    changed = rng.uniform(0.1, 0.4) + np.where(base == 0, gain, -gain)
    models = np.where(rng.random((NUM_MODELS, size)) < changed, 1 - base, base)
    return Paired(Measure(ratio, is_accuracy=True), _with_ones(base), _with_ones(models))


def bits_alike(rng: np.random.Generator, size: int, *, gain: float = 0.0) -> Paired:
    """Bits per byte of two models alike: a document's difference is as likely one way as the other, about 0.1."""
    return _bits(rng, rng.normal(0, 0.1, size=(NUM_MODELS, size)) - gain)


def bits_skewed(rng: np.random.Generator, size: int, *, gain: float = 0.0) -> Paired:
    """Many small gains, few large losses."""
    return _bits(rng, 0.1 * (rng.exponential(size=(NUM_MODELS, size)) - 1) - gain)


def bits_rare(rng: np.random.Generator, size: int, *, gain: float = 0.0) -> Paired:
    """Nine of ten documents differ by the gain alone."""
    shape = NUM_MODELS, size
    return _bits(rng, rng.normal(0, 0.3, size=shape) * (rng.random(shape) < 0.1) - gain)


def _bits(rng: np.random.Generator, per_byte: Array) -> Paired:
    """Documents of log-normal length and about 1.2 bits a byte, and models that differ from it, `[models, documents]`."""
    size = per_byte.shape[1]
    lengths = np.round(np.exp(rng.normal(5, 0.7, size=size))) + 1
    base = lengths * rng.gamma(36, 1.2 / 36, size=size)
    models = base + lengths * per_byte
    return Paired(
        Measure(ratio), _beside(base, lengths), _beside(models, np.broadcast_to(lengths, models.shape))
    )


def translations_alike(rng: np.random.Generator, size: int, *, gain: float = 0.0) -> Paired:
    """chrF++ of about 40; a gain is a share of n-grams more."""
    return _translations(rng, size, lambda quality: quality + gain)


def translations_failing(rng: np.random.Generator, size: int, *, gain: float = 0.0) -> Paired:
    """One document in twenty fails, and the others are so much better that it comes to the same."""

    def changed(quality: Array) -> Array:
        return np.where(rng.random(quality.shape) < 0.05, 0.5 * quality, quality + _MADE_UP) + gain

    return _translations(rng, size, changed)


# Found by bisection over a million documents: chrF++ of all that there are is the same.
_MADE_UP = 0.01166


def _translations(rng: np.random.Generator, size: int, changed: Callable[[Array], Array]) -> Paired:
    lengths = np.round(np.exp(rng.normal(4.7, 0.6, size=size))) + 10
    ease = rng.beta(8, 3, size=size)
    base = _segments(rng, lengths, ease + rng.normal(0, 0.05, size=size))
    quality = changed(ease + rng.normal(0, 0.05, size=(NUM_MODELS, size)))
    return Paired(Measure(chrf), base, _segments(rng, np.broadcast_to(lengths, quality.shape), quality))


def _segments(rng: np.random.Generator, lengths: Array, quality: Array) -> Array:
    """Counts of n-grams in hypothesis, reference and both, `[…, 3 · orders]`; longer n-grams match less often."""
    order = np.arange(1, _ORDERS + 1)
    words = order > 6
    units = np.where(words, lengths[..., None] / 6, lengths[..., None])
    reference = np.maximum(np.round(units) - np.where(words, order - 6, order) + 1, 1)
    hypothesis = np.maximum(np.round(reference * rng.normal(1, 0.1, size=lengths.shape)[..., None]), 1)
    share = np.clip(quality, 0.01, 0.99)[..., None] ** np.where(words, 2 * (order - 6), order)
    match = np.round(np.minimum(hypothesis, reference) * share)
    counts = np.stack(np.broadcast_arrays(hypothesis, reference, match), axis=-1)
    return counts.reshape(*lengths.shape, -1)


def _with_ones(values: Array) -> Array:
    return _beside(values, np.ones_like(values))


def _beside(first: Array, second: Array) -> Array:
    return np.stack([first, second], axis=-1)


def compared(
    draw: Draw, *, num: int, num_resamples: int, seed: int, gain: float = 0.0
) -> Iterator[tuple[int, Estimate]]:
    """At least `num` comparisons by the command's own engine, and on how many documents each was made."""
    rng = np.random.default_rng(seed)
    for size in SIZES:
        tasks = {
            str(place): draw(rng, size, gain=gain) for place in range(num // NUM_MODELS // len(SIZES) + 1)
        }
        found, _ = estimate(tasks, {}, num_resamples=num_resamples, seed=seed)
        yield from ((size, one) for models in found.values() for one in models)
