"""Held-out likelihood against hand-computed log-probabilities and against lm-eval's windows."""

from __future__ import annotations

import math

import pytest
import torch
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel

from lape_ds.corpora.streams import Document
from lape_ds.errors import UserError
from lape_ds.model.loss import LanguageModelLoss
from lape_ds.model.scoring import bits_per_byte, score_documents
from tests.tiny_models import VOCAB_SIZE, tiny_model

BOS = 1


def random_documents(*lengths: int, seed: int = 0) -> list[Document]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Document(torch.randint(3, VOCAB_SIZE, (length,), generator=generator), 4 * length)
        for length in lengths
    ]


def row_nll(model: PreTrainedModel, context: list[int], continuation: list[int]) -> float:
    """One row without padding, token by token: lm-eval scores `continuation` after `context`."""
    with torch.no_grad():
        logits = model(torch.tensor([(context + continuation)[:-1]])).logits[0].double()
    nll = 0.0
    for back, token in enumerate(reversed(continuation), start=1):
        scores = logits[-back].tolist()
        nll += math.log(sum(math.exp(score) for score in scores)) - scores[token]
    return nll


def harness_nll(model: PreTrainedModel, tokens: list[int], max_length: int) -> float:
    """The windows of lm-eval 0.4.13 `HFLM.loglikelihood_rolling`: context_len=1, made disjoint."""
    windows = get_rolling_token_windows(
        token_list=tokens, prefix_token=BOS, max_seq_len=max_length, context_len=1
    )
    return sum(
        row_nll(model, context, continuation) for context, continuation in map(make_disjoint_window, windows)
    )


@pytest.mark.parametrize("model_type", ["llama", "opt", "bloom", "gpt_neox"])
def test_short_document_by_hand(model_type: str) -> None:
    model = tiny_model(model_type)
    documents = random_documents(5, 9, 1)
    scores = score_documents(
        LanguageModelLoss(model), documents, prefix_token_id=BOS, max_length=32, tokens_per_batch=64
    )
    expected = [row_nll(model, [BOS], document.token_ids.tolist()) for document in documents]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    assert scores.dtype == torch.float64


@pytest.mark.parametrize("max_length", [1, 2, 7, 8, 16])
@pytest.mark.parametrize("tokens_per_batch", [1, 20, 1000])
def test_equals_harness_windows(max_length: int, tokens_per_batch: int) -> None:
    """Lengths around the window's edges, an empty document among them; whatever the batches."""
    model = tiny_model("llama")
    documents = random_documents(0, 1, 6, 7, 8, 9, 14, 15, 16, 17, 33)
    scores = score_documents(
        LanguageModelLoss(model),
        documents,
        prefix_token_id=BOS,
        max_length=max_length,
        tokens_per_batch=tokens_per_batch,
    )
    expected = [harness_nll(model, document.token_ids.tolist(), max_length) for document in documents]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("world_size", [2, 3, 50])
def test_ranks_share_the_work(world_size: int) -> None:
    """Shares add up to the whole, no window is scored twice, and every rank calls the model equally often."""
    model = LanguageModelLoss(tiny_model("llama"))
    documents = random_documents(3, 12, 40, 7, 25)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(rank))
    rank = -1
    whole = score_documents(model, documents, prefix_token_id=BOS, max_length=8, tokens_per_batch=16)
    calls.clear()
    shares = []
    for rank in range(world_size):
        shares.append(
            score_documents(
                model,
                documents,
                prefix_token_id=BOS,
                max_length=8,
                tokens_per_batch=16,
                rank=rank,
                world_size=world_size,
            )
        )
    torch.testing.assert_close(torch.stack(shares).sum(0), whole)
    assert len({calls.count(rank) for rank in range(world_size)}) == 1
    assert len(calls) >= world_size


def test_no_documents_call_nothing() -> None:
    model = LanguageModelLoss(tiny_model("llama"))
    model.register_forward_hook(lambda *_: pytest.fail("the model was run"))
    assert score_documents(model, [], prefix_token_id=BOS, max_length=8, tokens_per_batch=16).shape == (0,)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_mode_is_kept(training: bool) -> None:
    model = LanguageModelLoss(tiny_model("opt", dropout=0.5).train(training))
    documents = random_documents(10)
    scores = [
        score_documents(model, documents, prefix_token_id=BOS, max_length=8, tokens_per_batch=16)
        for _ in range(2)
    ]
    assert torch.equal(scores[0], scores[1])
    assert model.training is training
    assert model.model.training is training


def test_bits_per_byte() -> None:
    """A uniform guess over 256 bytes costs ln 256 nats, 8 bits, per byte."""
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8.0)
    with pytest.raises(UserError, match="no text"):
        bits_per_byte(0.0, 0)
