"""From a run to its alignment: parallel sentences through the base and through the trained model.

After similarity.py and sentence_states.py; needs torch, a GPU if there is one. One model is in memory at a time, and of it the
states of two languages.

Shape legend: M measures, L layers, n sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from lape_ds.analysis.alignment.numbers import (
    MEASURES,
    Alignment,
    BeforeAfter,
    Measured,
    PairAlignment,
    ParallelRequest,
)
from lape_ds.analysis.alignment.parallel_text import ParallelText, parallel_text
from lape_ds.analysis.alignment.sentence_states import mean_states
from lape_ds.analysis.alignment.similarity import similarities
from lape_ds.analysis.intervals import half_widths
from lape_ds.analysis.training.run import AnalyzedRun
from lape_ds.corpora.tokenizing import token_layout, tokenize
from lape_ds.distributed.ranks import device
from lape_ds.evaluation.comparing.statistics import Array
from lape_ds.evaluation.public_documents import PIVOT
from lape_ds.model.loading import load_config, load_tokenizer
from lape_ds.recipe import Recipe
from lape_ds.runlog import Progress

Pair = tuple[str, str]  # trained language, other one
_LONGEST = 4096  # tokens of a sentence: no real one has more


@dataclass(frozen=True, eq=False)
class PairValues:
    """One pair of languages in one model.

    Attributes:
        by_sentence: `[M, L + 1, n]`, whose mean over sentences is the measure.
        chance: `[M, L + 1]`.
    """

    by_sentence: Array
    chance: Array


@dataclass(frozen=True, eq=False)
class _Sentences:
    """What a model is to read.

    Attributes:
        ids: By language, each sentence's tokens.
        prefix: BOS, if the tokenizer has one.
        max_length: Tokens that the model reads, the prefix among them.
        tokens_per_batch: Of one call.
    """

    ids: Mapping[str, list[list[int]]]
    prefix: list[int]
    max_length: int
    tokens_per_batch: int

    @classmethod
    def of(cls, run: AnalyzedRun, text: ParallelText) -> _Sentences:
        tokenizer = load_tokenizer(run.base_folder)
        config = load_config(run.base_folder)
        return cls(
            ids={code: tokenize(tokenizer, texts) for code, texts in text.texts.items()},
            prefix=token_layout(tokenizer).before,
            max_length=min(getattr(config, "max_position_embeddings", None) or _LONGEST, _LONGEST),
            tokens_per_batch=run.recipe.train.heldout.tokens_per_batch,
        )

    def num_cut(self, code: str) -> int:
        """Of a language, those that are too long."""
        return sum(len(self.prefix) + len(ids) > self.max_length for ids in self.ids[code])

    def states(self, model: PreTrainedModel, code: str) -> Tensor:
        """float32 `[L + 1, n, D]` of a language, where the model is."""
        return mean_states(
            model,
            self.ids[code],
            prefix=self.prefix,
            max_length=self.max_length,
            tokens_per_batch=self.tokens_per_batch,
        ).to(model.device)


def measure_alignment(run: AnalyzedRun, request: ParallelRequest) -> Alignment:
    """Measures a run's alignment of its trained languages with English, and with the others that it knows.

    These are the languages whose held-out text the training measured, else the identified ones.

    Args:
        run: Exported, or with a pack.
        request: Which sentences.

    Raises:
        UserError: It is not exported, its base is not there as it was, or there are no parallel sentences.
    """
    trained, own = run.trained, run.recipe.trained_languages  # first: whether there is a trained model
    text = parallel_text(run.recipe, own, _others(run.recipe), request)
    sentences = _Sentences.of(run, text)
    pairs = [(code, other) for code in own for other in text.texts if other not in own]
    total = 2 * text.num_sentences * (len(own) + len(pairs))
    with Progress("Reading parallel sentences", total=total, unit="sentences") as bar:
        before, after = (
            _measure(load(device=device()), sentences, pairs, bar)
            for load in (run.load_base, run.load_trained)
        )
    return Alignment(
        subject=run.subject(run.base, trained),
        source=text.source,
        num_sentences=text.num_sentences,
        num_cut={code: sentences.num_cut(code) for code in text.texts},
        left_out=text.left_out,
        pairs=tuple(PairAlignment(*pair, before_after(before[pair], after[pair])) for pair in pairs),
        means={
            name: before_after(_mean([before[pair] for pair in some]), _mean([after[pair] for pair in some]))
            for name, some in (
                ("english", [pair for pair in pairs if pair[1] == PIVOT]),
                ("others", [pair for pair in pairs if pair[1] != PIVOT]),
            )
            if some
        },
    )


def _others(recipe: Recipe) -> list[str]:
    """English first."""
    known = recipe.train.heldout.languages or recipe.languages.identify
    return [code for code in dict.fromkeys([PIVOT, *known]) if code not in recipe.trained_languages]


def _measure(
    model: PreTrainedModel, sentences: _Sentences, pairs: Sequence[Pair], bar: Progress
) -> dict[Pair, PairValues]:
    """All pairs in one model, which is let go of at the end."""
    found: dict[Pair, PairValues] = {}
    for code in dict.fromkeys(code for code, _ in pairs):
        own = sentences.states(model, code)
        bar.advance(own.shape[1], note=code)
        for pair in (pair for pair in pairs if pair[0] == code):
            found[pair] = pair_values(own, sentences.states(model, pair[1]))
            bar.advance(own.shape[1], note=pair[1])
    return found


def pair_values(own_LnD: Tensor, other_LnD: Tensor) -> PairValues:
    """Every layer's similarities."""
    layers = [similarities(own_nD, other_nD) for own_nD, other_nD in zip(own_LnD, other_LnD, strict=True)]
    return PairValues(
        torch.stack([layer.by_sentence for layer in layers], dim=1).cpu().numpy(),
        torch.stack([layer.chance for layer in layers], dim=1).numpy(),
    )


def _mean(values: Sequence[PairValues]) -> PairValues:
    """Of several pairs, sentence by sentence: a sentence that is drawn again is so in all languages."""
    return PairValues(
        np.mean([one.by_sentence for one in values], axis=0), np.mean([one.chance for one in values], axis=0)
    )


def before_after(before: PairValues, after: PairValues) -> Measured:
    """Measures, and the interval of each one's change: the same sentences are drawn before and after."""
    changes = after.by_sentence - before.by_sentence
    changes = np.concatenate(
        [changes, changes[:, 1:].mean(1, keepdims=True)], axis=1
    )  # and the mean over layers
    _, num_columns, n = changes.shape
    widths = half_widths(changes.reshape(-1, n).T, np.ones(n), name="sentences")
    found = {}
    for number, name in enumerate(MEASURES):
        own = widths[number * num_columns : (number + 1) * num_columns]
        ends = [values.by_sentence[number].mean(1).tolist() for values in (before, after)]
        found[name] = BeforeAfter(
            before=tuple(ends[0]),
            after=tuple(ends[1]),
            chance_before=tuple(before.chance[number].tolist()),
            chance_after=tuple(after.chance[number].tolist()),
            half_width=tuple(own[:-1]),
            mean_before=fmean(ends[0][1:]),
            mean_after=fmean(ends[1][1:]),
            mean_half_width=own[-1],
        )
    return found
