"""Fixtures that every room's tests may share; all made offline, in milliseconds."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(*, bos: bool = True, eos: bool = True, pad: bool = True) -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, 256 of them behind <pad>, <s> and </s>, of those asked for."""
    wanted = (("<pad>", pad), ("<s>", bos), ("</s>", eos))
    specials = [token for token, there in wanted if there]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="</s>" if eos else None,
        pad_token="<pad>" if pad else None,
    )


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, 259 tokens: <pad> 0, <s> 1 (BOS), </s> 2 (EOS), then the 256 bytes."""
    return byte_tokenizer()
