"""Which languages' text a run needs, and how much of each: to train on, to replay, to measure on.

Between the packed corpora and a run's inputs. Evaluation asks here too, for the very documents that training holds out; so
nothing here needs DeepSpeed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lape_ds.corpora.packing import PackedCorpus
from lape_ds.corpora.prepare import identified_corpora, prepare_corpora
from lape_ds.corpora.streams import Document
from lape_ds.recipe import Recipe, TokenBudget


@dataclass(frozen=True)
class HeldOut:
    """Held-out text of one language, the same on every rank."""

    documents: Sequence[Document]
    num_bytes: int


@dataclass(frozen=True)
class Texts:
    """Packed text of a run, by language.

    One language may stand in two of them with another budget each: what is measured must never decide what is trained on.

    Attributes:
        trained: All that the recipe asks for.
        replayed: As much as the run replays.
        measured: The trained languages, then `train.heldout.languages`; none where nothing is measured.
    """

    trained: dict[str, PackedCorpus]
    replayed: dict[str, PackedCorpus]
    measured: dict[str, PackedCorpus]

    def by_name(self) -> dict[str, PackedCorpus]:
        """Each of them once, by a name that a person understands."""
        named = self.trained | self.measured
        return named | {
            f"{code} (replayed)" if code in named else code: corpus for code, corpus in self.replayed.items()
        }


def prepare_texts(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Packs what a run needs and is not packed yet: that may take hours.

    Raises:
        UserError: A language has no text, or too little of it.
    """
    measured = measured_languages(recipe)
    trained = _trained_texts(recipe, tokenizer, need_heldout=bool(measured))
    return Texts(
        trained=trained,
        replayed=_replayed_texts(recipe, tokenizer, replayed_languages(recipe), trained),
        measured={code: heldout_text(recipe, tokenizer, code, trained) for code in measured},
    )


def text_of_stages(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, code: str) -> PackedCorpus | None:
    """Packs all that `identify`, `train` and `neurons ablate` will read of one language, by the calls that they make.

    Returns:
        The corpus at the largest of their budgets; None where no stage reads this language.

    Raises:
        UserError: As of those stages.
    """
    packed: list[PackedCorpus] = []
    measured = measured_languages(recipe)
    if code in recipe.languages.identify:
        packed += identified_corpora(recipe, tokenizer, [code]).values()
        packed += corpora_to_measure(recipe, tokenizer, [code]).values()
    if code in recipe.trained_languages:
        packed.append(_trained_texts(recipe, tokenizer, need_heldout=bool(measured))[code])
    if code in replayed_languages(recipe):
        trained = _trained_texts(recipe, tokenizer, need_heldout=bool(measured))
        packed += _replayed_texts(recipe, tokenizer, [code], trained).values()
    if code in measured:
        packed.append(heldout_text(recipe, tokenizer, code))
    return max(packed, key=lambda corpus: corpus.train.num_tokens, default=None)


def heldout_text(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    code: str,
    trained: dict[str, PackedCorpus] | None = None,
) -> PackedCorpus:
    """The text of any language, read far enough for its held-out part; nothing held out is mostly repeated in what trains.

    Args:
        recipe: Of a run.
        tokenizer: Of its model.
        code: Canonical code of any language.
        trained: The run's own, where they are known.

    Raises:
        UserError: The language has no text, or none is held out.
    """
    is_trained, is_replayed = code in recipe.trained_languages, code in replayed_languages(recipe)
    if trained is None and (is_trained or is_replayed):
        trained = _trained_texts(recipe, tokenizer, need_heldout=is_trained)
    if is_trained and trained is not None:
        return trained[code]
    at_least = _replay_budget(recipe, trained) if is_replayed and trained is not None else 0
    return corpora_to_measure(recipe, tokenizer, [code], at_least=at_least)[code]


def corpora_to_measure(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, languages: Iterable[str], *, at_least: int = 0
) -> dict[str, PackedCorpus]:
    """Text of any languages, as much as the held-out part of each needs, but at least so many tokens.

    Raises:
        UserError: A language has no text, or none is held out.
    """
    # So many tokens make the held-out part about half as large again as is measured.
    enough = math.ceil(1.5 * recipe.train.heldout.tokens_per_language / recipe.corpus.heldout_share)
    budgets: dict[str, TokenBudget] = dict.fromkeys(languages, max(enough, at_least))
    key = "train.heldout.tokens_per_language"
    return prepare_corpora(recipe, tokenizer, budgets, train_tokens=budgets, or_all=True, budget_key=key)


def heldout_part(recipe: Recipe, corpus: PackedCorpus) -> HeldOut:
    """The documents that are measured: the first ones held out, to `train.heldout.tokens_per_language`."""
    documents = list(corpus.heldout.documents(recipe.train.heldout.tokens_per_language))
    return HeldOut(documents, sum(document.num_bytes for document in documents))


def replayed_languages(recipe: Recipe) -> list[str]:
    """Languages whose text is mixed into training against forgetting."""
    if recipe.train.replay.share == 0:
        return []
    named = recipe.train.replay.languages or recipe.languages.identify
    return [code for code in named if code not in recipe.trained_languages]


def measured_languages(recipe: Recipe) -> list[str]:
    """Languages whose held-out bits per byte training measures."""
    if recipe.train.heldout.every_steps is None:
        return []
    return list(dict.fromkeys([*recipe.trained_languages, *recipe.train.heldout.languages]))


def _trained_texts(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, need_heldout: bool
) -> dict[str, PackedCorpus]:
    own = recipe.trained_languages
    asked: dict[str, TokenBudget] = {code: recipe.train.tokens for code in own}  # noqa: C420 - a wider type
    return prepare_corpora(recipe, tokenizer, own, train_tokens=asked, need_heldout=need_heldout)


def _replayed_texts(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    languages: Iterable[str],
    trained: dict[str, PackedCorpus],
) -> dict[str, PackedCorpus]:
    budgets: dict[str, TokenBudget] = dict.fromkeys(languages, _replay_budget(recipe, trained))
    return prepare_corpora(
        recipe,
        tokenizer,
        budgets,
        train_tokens=budgets,
        or_all=True,
        need_heldout=False,
        budget_key="train.replay.share",
    )


def _replay_budget(recipe: Recipe, trained: dict[str, PackedCorpus]) -> int:
    """Tokens of each replayed language: what the run takes of it, if it takes equally much of all."""
    train = recipe.train
    if train.replay.share == 0:
        return 0
    num_own = sum(corpus.train.num_tokens for corpus in trained.values())
    replay_tokens = num_own * train.epochs * train.replay.share / (1 - train.replay.share)
    return max(1, math.ceil(replay_tokens / len(replayed_languages(recipe))))
