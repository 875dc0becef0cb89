"""The corpora that a stage needs, packed or found packed: what `corpus`, `identify` and `train` call.

Last step of this room: recipe in, one `PackedCorpus` per language out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from transformers import PreTrainedTokenizerBase

from lape_ds.corpora.packing import PackedCorpus, pack
from lape_ds.corpora.tokenizing import tokenizer_fingerprint
from lape_ds.languages import find_language
from lape_ds.recipe import Recipe, TokenBudget


def prepare_corpora(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    languages: Iterable[str],
    *,
    train_tokens: Mapping[str, TokenBudget],
    budget_key: str = "train.tokens",
    or_all: bool = False,
    need_heldout: bool = True,
) -> dict[str, PackedCorpus]:
    """Packs what is not packed yet, language after language. Safe to call from several processes.

    Args:
        recipe: Its `corpus` section says where text comes from, where it is kept and how it is split.
        tokenizer: The model's.
        languages: Canonical codes.
        train_tokens: Per language the tokens wanted of the training split, or `all`.
        budget_key: The recipe's key that these come from, for messages.
        or_all: A language with less than its budget is taken whole, not refused.
        need_heldout: False: a language may be without held-out text, e.g. one that is only replayed.

    Returns:
        Per code its corpus, in the order asked for.

    Raises:
        UserError: See `pack`.
    """
    corpus = recipe.corpus
    tokenizer_hash = tokenizer_fingerprint(tokenizer)
    return {
        code: pack(
            find_language(code),
            corpus.source_of(code),
            tokenizer,
            recipe.corpus_dir,
            train_tokens=train_tokens[code],
            heldout_share=corpus.heldout_share,
            on_bad_line=corpus.on_bad_line,
            budget_key=budget_key,
            or_all=or_all,
            need_heldout=need_heldout,
            tokenizer_hash=tokenizer_hash,
        )
        for code in languages
    }


def identified_corpora(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, languages: Iterable[str]
) -> dict[str, PackedCorpus]:
    """The text in which `lape-ds identify` counts, as `prepare_corpora` gives it."""
    budgets: dict[str, TokenBudget] = dict.fromkeys(languages, recipe.identify.tokens_per_language)
    key = "identify.tokens_per_language"
    return prepare_corpora(recipe, tokenizer, budgets, train_tokens=budgets, budget_key=key)
