"""Text to token ids, and what a tokenizer is recognised by.

Between reading and packing: the one place in this room that knows the tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

# A document longer than this is tokenised in pieces cut before white space: a tokenizer keeps 100 bytes a
# token of what it is given at once. Only there may a token differ from that of the whole text.
_PIECE_CHARACTERS = 1_000_000
# Scripts, spaces and a special token's look: told apart by tokenizers with equal vocabularies.
_PROBE = "Aa  b\n\tÉé ħġ ქართული नेपाली 汉字 العربية 🙂 <s></s> 1234567.8"


@dataclass(frozen=True)
class TokenLayout:
    """How documents lie in a stream of token ids.

    Attributes:
        bos_id: Id in front of each document; None if the tokenizer has none.
        eos_id: Id behind each document; None if the tokenizer has none.
        pad_id: What fills the last block: the tokenizer's own padding, else EOS, else 0. Never scored.
        dtype: Of the ids on disk.
    """

    bos_id: int | None
    eos_id: int | None
    pad_id: int
    dtype: str

    @property
    def before(self) -> list[int]:
        """What stands in front of each document."""
        return [] if self.bos_id is None else [self.bos_id]

    @property
    def after(self) -> list[int]:
        """What stands behind each document."""
        return [] if self.eos_id is None else [self.eos_id]


def token_layout(tokenizer: PreTrainedTokenizerBase) -> TokenLayout:
    """Reads the special ids; two bytes per token suffice for a vocabulary of up to 65,536."""
    specials = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    bos, eos, pad = (token if isinstance(token, int) else None for token in specials)
    fill = next((token for token in (pad, eos) if token is not None), 0)
    highest = max(tokenizer.get_vocab().values())
    return TokenLayout(bos, eos, fill, "<u2" if highest < 1 << 16 else "<u4")


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex hash of all that decides a text's ids: vocabulary, merges, normalisation, special ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = sorted(tokenizer.get_vocab().items())
    else:
        content = json.loads(backend.to_str())
        # What a caller last asked for, not what the tokenizer is.
        content.pop("truncation", None)
        content.pop("padding", None)
    probe = tokenize(tokenizer, [_PROBE])[0]
    parts = [type(tokenizer).__name__, content, probe, asdict(token_layout(tokenizer))]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with no special token added.

    `</s>` written out in a text is ordinary text, except to a Unigram model converted from SentencePiece, which
    has `</s>` among its pieces and gives the special id. Nothing takes that for the end of a document: where
    documents begin and end is told by the index (`streams.py`), never by ids.
    """
    if not texts:  # which a tokenizer takes for a fault
        return []
    pieces = [list(_pieces(text)) for text in texts]
    flat = [piece for text in pieces for piece in text]
    if not flat:  # the tokenizer itself fails on an empty list
        return [[] for _ in texts]
    ids: list[list[int]] = tokenizer(
        flat,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning of texts beyond the model's context: blocks are cut later
    )["input_ids"]  # pyright: ignore[reportAssignmentType]
    if len(flat) == len(texts):
        return ids
    following = iter(ids)
    return [[token for _ in text for token in next(following)] for text in pieces]


def _pieces(text: str) -> Iterator[str]:
    """A text's pieces of at most about a million characters; each but the first begins with white space."""
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        cut = start + _PIECE_CHARACTERS
        while cut > start + _PIECE_CHARACTERS // 2 and not (
            text[cut].isspace() and not text[cut - 1].isspace()
        ):
            cut -= 1
        yield text[start:cut]
        start = cut
    yield text[start:]


def flatten(documents: Sequence[Sequence[int]], layout: TokenLayout) -> np.ndarray:
    """Documents' ids one after the other, each between BOS and EOS where there are such."""
    framed = (token for ids in documents for part in (layout.before, ids, layout.after) for token in part)
    total = sum(map(len, documents)) + len(documents) * (len(layout.before) + len(layout.after))
    return np.fromiter(framed, dtype=layout.dtype, count=total)
