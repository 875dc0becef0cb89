"""Blocks and documents of a packed stream against a plain list of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lape_ds.corpora.streams import DOCUMENT, NOT_SCORED, TokenStream
from lape_ds.corpora.tokenizing import flatten, token_layout
from lape_ds.errors import UserError
from tests.conftest import byte_tokenizer

KINDS = [{}, {"bos": False}, {"eos": False}, {"bos": False, "eos": False, "pad": False}]


def make_stream(layout, documents, hashes, rows=None):
    tokens = flatten(documents, layout)
    index = np.zeros(len(documents), DOCUMENT)
    frame = len(layout.before) + len(layout.after)
    index["end"] = np.cumsum([len(ids) + frame for ids in documents])
    index["num_bytes"] = [7 * len(ids) for ids in documents]
    index["hash"] = hashes
    return TokenStream(tokens, index, layout=layout, rows=rows)


def naive_blocks(layout, documents, hashes, block_length):
    """Token by token: (id, label, attended, bucket, is_text)."""
    flat = []
    for ids, key in zip(documents, hashes, strict=True):
        bucket = int(key) % 16
        if layout.bos_id is not None:
            flat.append((layout.bos_id, NOT_SCORED, True, bucket, False))
        alone = layout.bos_id is None and layout.eos_id is None
        for place, token in enumerate(ids):
            flat.append((token, NOT_SCORED if alone and place == 0 else token, True, bucket, True))
        if layout.eos_id is not None:
            flat.append((layout.eos_id, layout.eos_id, True, bucket, False))
    while len(flat) % block_length:
        flat.append((layout.pad_id, NOT_SCORED, False, 0, False))
    return [flat[start : start + block_length] for start in range(0, len(flat), block_length)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block_length", [2, 7, 16, 1000])
@pytest.mark.parametrize("some", [False, True])
def test_blocks_against_a_naive_loop(kind, block_length, some):
    layout = token_layout(byte_tokenizer(**kind))
    random = np.random.default_rng(block_length)
    documents = [random.integers(3, 200, size).tolist() for size in random.integers(1, 30, 25)]
    hashes = random.integers(0, 2**63, len(documents)).astype(np.uint64)
    rows = np.flatnonzero(random.random(len(documents)) < 0.5) if some else None
    stream = make_stream(layout, documents, hashes, rows)
    if rows is not None:
        documents, hashes = [documents[row] for row in rows], hashes[rows]
    expected = naive_blocks(layout, documents, hashes, block_length)
    assert stream.num_blocks(block_length) == len(expected)
    for index, block in enumerate(expected):
        given = stream.block(index, block_length)
        columns = (given.input_ids, given.labels, given.attention_mask, given.token_bucket, given.is_text)
        assert [column.dtype for column in columns] == [
            torch.int64,
            torch.int64,
            torch.bool,
            torch.uint8,
            torch.bool,
        ]
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == block
    for outside in (-1, len(expected)):
        with pytest.raises(IndexError):
            stream.block(outside, block_length)
    assert [document.token_ids.tolist() for document in stream.documents()] == documents
    assert (
        stream.num_bytes
        == sum(document.num_bytes for document in stream.documents())
        == 7 * sum(map(len, documents))
    )
    assert stream.num_documents == len(documents)


def test_budgets():
    layout = token_layout(byte_tokenizer())
    stream = make_stream(layout, [[5] * 8, [6] * 8, [7] * 3], [0, 1, 2])
    assert stream.num_tokens == 25
    assert [stream.num_blocks(10, tokens) for tokens in (1, 10, 11, 25, "all")] == [1, 1, 2, 3, 3]
    with pytest.raises(UserError, match="26 tokens asked of a text of 25"):
        stream.num_blocks(10, 26)
    assert [len(list(stream.documents(tokens))) for tokens in (1, 8, 9, 16, 17, 99)] == [1, 1, 2, 2, 3, 3]
