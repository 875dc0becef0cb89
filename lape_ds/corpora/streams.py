"""Packed tokens as the later rooms read them: fixed-length blocks, and whole documents.

Between packing and its readers (counting, training, held-out scoring). Everything is memory-mapped: a stream
of 10^10 tokens costs a process what it reads of it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from lape_ds.corpora.splitting import bucket_of
from lape_ds.corpora.tokenizing import TokenLayout
from lape_ds.errors import UserError

NOT_SCORED = -100
# A document of a stream: where its tokens end, bytes of its UTF-8 text, hash of its normalised text, how many
# documents of both splits had been read with it, and where its lines' hashes end.
DOCUMENT = np.dtype(
    [("end", "<u8"), ("num_bytes", "<u8"), ("hash", "<u8"), ("ordinal", "<u8"), ("lines_end", "<u8")]
)


@dataclass(frozen=True)
class Block:
    """`block_length` (T) consecutive tokens of a stream, several documents and parts of documents.

    Attributes:
        input_ids: int64 [T].
        labels: int64 [T], not shifted (the model shifts): the token itself, or -100 where it is never scored:
            padding, BOS, and, of a tokenizer with neither BOS nor EOS, a document's first token (only another
            document goes before it).
        attention_mask: bool [T], False on padding.
        token_bucket: uint8 [T], 0 to 15 by the hash of the token's document; 0 on padding.
        is_text: bool [T], False on BOS, EOS and padding.
        positions: int64 [T], of each token in its document as far as that lies in the block, from 0; those of padding go on.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    attention_mask: torch.Tensor
    token_bucket: torch.Tensor
    is_text: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True)
class Document:
    """One whole document.

    Attributes:
        token_ids: int64 [n], without BOS and EOS.
        num_bytes: Bytes of its text in UTF-8, the denominator of bits per byte.
    """

    token_ids: torch.Tensor
    num_bytes: int


class TokenStream:
    """The documents of one split of one language, as one stream of tokens.

    Attributes:
        num_tokens: Tokens, BOS and EOS of each document among them.
        num_documents: Documents.
    """

    def __init__(
        self,
        tokens: npt.NDArray[np.uint16] | npt.NDArray[np.uint32],
        documents: npt.NDArray[np.void],
        *,
        layout: TokenLayout,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """Views packed tokens.

        Args:
            tokens: [all tokens], usually memory-mapped.
            documents: `DOCUMENT` [all documents]; their tokens may end before `tokens` does.
            layout: Of the tokens.
            rows: Which documents to view, increasing; all if None.
        """
        self._tokens, self._documents, self._layout, self._rows = tokens, documents, layout, rows
        self._ends: npt.NDArray[np.uint64] = documents["end"]
        if rows is not None:
            begins = np.concatenate([np.zeros(1, np.uint64), documents["end"]])[rows]
            self._ends = np.cumsum(documents["end"][rows] - begins, dtype=np.uint64)
        self.num_documents = len(self._ends)
        self.num_tokens = int(self._ends[-1]) if self.num_documents else 0

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of all documents' texts in UTF-8."""
        sizes = self._documents["num_bytes"]
        return int(sizes.sum() if self._rows is None else sizes[self._rows].sum())

    @cached_property
    def fingerprint(self) -> str:
        """Of the documents' texts, in their order: 16 hexadecimal digits. Reads the index, not the tokens."""
        hashes = self._documents["hash"] if self._rows is None else self._documents["hash"][self._rows]
        return hashlib.sha256(np.ascontiguousarray(hashes).data).hexdigest()[:16]

    def num_blocks(self, block_length: int, tokens: Literal["all"] | int = "all") -> int:
        """Blocks that hold the stream's first `tokens` tokens; the last one may reach beyond them.

        Raises:
            UserError: The stream has fewer tokens.
        """
        wanted = self.num_tokens if tokens == "all" else tokens
        if wanted > self.num_tokens:
            raise UserError(
                f"{wanted:,} tokens asked of a text of {self.num_tokens:,}: ask for that many, or for `all`"
            )
        return -(-wanted // block_length)

    def block(self, index: int, block_length: int) -> Block:
        """Tokens `index * block_length` on; only a stream's last block is padded.

        Raises:
            IndexError: No such block.
        """
        start = index * block_length
        if not 0 <= start < self.num_tokens:
            raise IndexError(f"block {index} of {self.num_blocks(block_length)}")
        stop = min(start + block_length, self.num_tokens)
        first, last = bisect_right(self._ends, start), bisect_left(self._ends, stop)
        ends = self._ends[first : last + 1].astype(np.int64) - start
        begins = np.concatenate([[self._begin(first) - start], ends[:-1]])
        num_tokens = np.minimum(ends, stop - start) - np.maximum(begins, 0)

        ids = np.full(block_length, self._layout.pad_id, np.int64)
        ids[: stop - start] = self._read(start, stop, first, last)
        attended = np.arange(block_length) < stop - start
        labels = np.where(attended, ids, NOT_SCORED)
        is_text = attended.copy()
        heads, tails = begins[begins >= 0], ends[ends <= stop - start] - 1
        if self._layout.bos_id is not None:
            is_text[heads] = False
        if self._layout.eos_id is not None:
            is_text[tails] = False
        if self._layout.bos_id is not None or self._layout.eos_id is None:
            labels[heads] = NOT_SCORED
        bucket = np.zeros(block_length, np.uint8)
        bucket[: stop - start] = np.repeat(bucket_of(self._hashes(first, last)), num_tokens)
        places = np.arange(block_length)
        first_of_document = np.zeros(block_length, np.int64)
        first_of_document[heads] = heads
        positions = places - np.maximum.accumulate(first_of_document)
        return Block(*map(torch.from_numpy, (ids, labels, attended, bucket, is_text, positions)))

    def documents(self, max_tokens: int | None = None) -> Iterator[Document]:
        """Whole documents in order, until at least `max_tokens` (BOS and EOS not counted) have been given."""
        head, tail = len(self._layout.before), len(self._layout.after)
        given = 0
        for place in range(self.num_documents):
            if max_tokens is not None and given >= max_tokens:
                return
            row = self._row(place)
            begin = int(self._documents["end"][row - 1]) if row else 0
            ids = self._tokens[begin + head : int(self._documents["end"][row]) - tail].astype(np.int64)
            given += len(ids)
            yield Document(torch.from_numpy(ids), int(self._documents["num_bytes"][row]))

    def ordinals(self, num_documents: int) -> list[int]:
        """Of the stream's first documents: how many of the source, of both splits, were read before each."""
        return [int(self._documents["ordinal"][self._row(place)]) for place in range(num_documents)]

    def _row(self, place: int) -> int:
        return place if self._rows is None else int(self._rows[place])

    def _begin(self, place: int) -> int:
        return int(self._ends[place - 1]) if place else 0

    def _hashes(self, first: int, last: int) -> npt.NDArray[np.uint64]:
        rows = slice(first, last + 1) if self._rows is None else self._rows[first : last + 1]
        return self._documents["hash"][rows]

    def _read(self, start: int, stop: int, first: int, last: int) -> npt.NDArray[np.integer]:
        """Tokens `start` to `stop` of the view, which lie in its documents `first` to `last`."""
        if self._rows is None:
            return self._tokens[start:stop]
        parts = []
        for place in range(first, last + 1):
            begin, end = self._begin(place), int(self._ends[place])
            shift = int(self._documents["end"][self._row(place)]) - end
            parts.append(self._tokens[max(begin, start) + shift : min(end, stop) + shift])
        return np.concatenate(parts)
