"""Memory of the chunked loss at a large vocabulary, measured on every tensor that is made."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from lape_ds.model.loss import LanguageModelLoss, chunk_rows

VOCAB_SIZE, NUM_TOKENS = 131_072, 512
LOGITS_BYTES = 4 * VOCAB_SIZE * NUM_TOKENS  # of one whole fp32 logits tensor


class _LiveBytes(TorchDispatchMode):
    """Watches every tensor that an operation returns; sums the storages alive after each."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self.peak = self._now = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address not in self._live:
            self._live[address] = size
            self._now += size
            weakref.finalize(storage, self._gone, address)
            self.peak = max(self.peak, self._now)

    def _gone(self, address: int) -> None:
        self._now -= self._live.pop(address)


def large_vocabulary(dtype: torch.dtype, *, train_head: bool) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, param in model.named_parameters():
        param.requires_grad_("mlp" in name or (train_head and "lm_head" in name))
    return model


def peak_bytes(run: Any) -> int:
    with _LiveBytes() as live:
        run().backward()
    return live.peak


@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.long)])
def test_logits_are_never_whole(dtype: torch.dtype, train_head: bool) -> None:
    """A forward and backward hold a chunk's logits (here a quarter of all rows; in bf16 beside their fp32 copy) and the head.

    The plain way, measured alike, holds the whole fp32 logits three times: log-probabilities, their gradient, the logits' own.
    """
    model = large_vocabulary(dtype, train_head=train_head)
    ids = torch.arange(NUM_TOKENS)[None]
    targets = ids + 1
    ours = peak_bytes(lambda: LanguageModelLoss(model)(ids, targets)[0])
    theirs = peak_bytes(
        lambda: functional.cross_entropy(model(ids, use_cache=False).logits.float()[0], targets[0])
    )
    chunk = VOCAB_SIZE * chunk_rows(VOCAB_SIZE, torch.device("cpu")) * (4 if dtype == torch.float32 else 6)
    head = sum(2 * param.nbytes for name, param in model.named_parameters() if "lm_head" in name)
    assert ours < chunk + head + LOGITS_BYTES / 20
    assert ours < 0.55 * LOGITS_BYTES
    assert theirs > 2 * LOGITS_BYTES
