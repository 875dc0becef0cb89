"""Text to ids, and what tells tokenizers apart."""

from __future__ import annotations

import numpy as np

from lape_ds.corpora import tokenizing
from lape_ds.corpora.tokenizing import flatten, token_layout, tokenize, tokenizer_fingerprint
from tests.conftest import byte_tokenizer


def test_bytes_and_no_special_token_in_text(tiny_tokenizer):
    """`</s>` written out in a text is four bytes, not the end of a document."""
    texts = ["a </s>é", "", "<s>"]
    ids = tokenize(tiny_tokenizer, texts)
    assert [len(row) for row in ids] == [len(text.encode()) for text in texts]
    assert all(token > 2 for row in ids for token in row)
    assert [tiny_tokenizer.decode(row) for row in ids] == texts
    assert tokenize(tiny_tokenizer, []) == []


def test_layout():
    layouts = [
        token_layout(byte_tokenizer(bos=b, eos=e, pad=p))
        for b, e, p in ((True,) * 3, (False, True, False), (False,) * 3)
    ]
    assert [(x.bos_id, x.eos_id, x.pad_id) for x in layouts] == [(1, 2, 0), (None, 0, 0), (None, None, 0)]
    assert all(x.dtype == "<u2" for x in layouts)
    assert flatten([[5, 6], [7]], layouts[0]).tolist() == [1, 5, 6, 2, 1, 7, 2]
    assert flatten([[5, 6], [7]], layouts[2]).tolist() == [5, 6, 7]
    assert flatten([], layouts[0]).dtype == np.uint16


def test_wide_vocabulary_takes_four_bytes(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(type(tiny_tokenizer), "get_vocab", lambda self: {"a": 0, "b": 65_535})
    assert token_layout(tiny_tokenizer).dtype == "<u2"
    monkeypatch.setattr(type(tiny_tokenizer), "get_vocab", lambda self: {"a": 0, "b": 65_536})
    assert token_layout(tiny_tokenizer).dtype == "<u4"


def test_fingerprint_is_of_the_tokenizer_not_of_its_use(tiny_tokenizer):
    first = tokenizer_fingerprint(byte_tokenizer())
    used = byte_tokenizer()
    used(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(used) == first == tokenizer_fingerprint(tiny_tokenizer)
    assert tokenizer_fingerprint(byte_tokenizer(bos=False)) != first


def test_very_long_text_in_pieces(tiny_tokenizer, monkeypatch):
    """Bytes do not depend on where a text is cut, so the pieces' ids are the whole's."""
    monkeypatch.setattr(tokenizing, "_PIECE_CHARACTERS", 50)
    texts = ["kelma " * 40, "x" * 333, "short", "", "é \n" * 99]
    ids = tokenize(tiny_tokenizer, texts)
    assert [tiny_tokenizer.decode(row) for row in ids] == texts
    assert all(piece[0].isspace() for piece in list(tokenizing._pieces(texts[0]))[1:])
