"""Divergence from the base model on replayed text, against whole logits and plain autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from lape_ds.model import loss as loss_module
from lape_ds.model.anchor import BaseAnchor
from lape_ds.model.loss import LanguageModelLoss
from tests.tiny_models import VOCAB_SIZE, tiny_model

WEIGHT = 0.7
REPLAYED = torch.tensor([0, 3])
# A plain head, a bias, a scale, a cap.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("phi", {}),
    ("cohere", {"logit_scale": 0.37}),
    ("gemma2", {"final_logit_softcapping": 0.9}),
]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of replayed and of other tokens, ragged last ones."""
    monkeypatch.setattr(loss_module, "chunk_rows", lambda vocab_size, device: 7)


def batch() -> tuple[Tensor, Tensor]:
    """Ids and targets [4, 11]; some tokens of replayed and of other rows are not scored."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB_SIZE, (4, 11), generator=generator)
    targets = torch.randint(0, VOCAB_SIZE, (4, 11), generator=generator)
    targets[0, :4] = targets[1, -2:] = targets[3, 6] = -100
    return ids, targets


def plain(
    model: PreTrainedModel, base: PreTrainedModel, ids: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """The oracle: negative log-likelihood and KL(base || model) per token, [B, T], 0 where they do not count."""
    logp = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    nll = functional.nll_loss(logp.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    with torch.no_grad():
        logq = base(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    counts = torch.zeros_like(targets)
    counts[REPLAYED] = 1
    counts[targets == -100] = 0
    return nll, (logq.exp() * (logq - logp)).sum(-1) * counts


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_equals_naive_divergence(model_type: str, changes: dict[str, Any]) -> None:
    """Values per token, and gradients of every parameter."""
    base = tiny_model(model_type, seed=1, **changes)
    expected_model, model = (tiny_model(model_type, seed=2, **changes) for _ in range(2))
    ids, targets = batch()
    nll, kl = plain(expected_model, base, ids, targets)
    expected = nll.sum() + WEIGHT * kl.sum()
    (3.0 * expected).backward()
    states = BaseAnchor(base, WEIGHT).states(ids, REPLAYED)
    total, got_nll, got_kl = LanguageModelLoss(model)(ids, targets, base=states)
    (3.0 * total).backward()
    assert kl.sum().item() > 0.005 * nll.sum().item(), "the divergence must matter"
    torch.testing.assert_close(got_nll, nll.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got_kl, kl.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0.0)
    assert not got_kl.requires_grad
    largest = max(
        float(param.grad.abs().max()) for param in expected_model.parameters() if param.grad is not None
    )
    for (name, param), wanted in zip(model.named_parameters(), expected_model.parameters(), strict=True):
        assert param.grad is not None
        torch.testing.assert_close(param.grad, wanted.grad, rtol=1e-5, atol=1e-6 * largest, msg=name)
    assert all(param.grad is None for param in base.parameters())


def test_an_unchanged_model_does_not_diverge() -> None:
    """At the first step the anchor pulls nowhere: the gradient is that of the likelihood alone."""
    models = [tiny_model("llama") for _ in range(3)]
    ids, targets = batch()
    states = BaseAnchor(models[0], WEIGHT).states(ids, REPLAYED)
    total, _, kl = LanguageModelLoss(models[1])(ids, targets, base=states)
    total.backward()
    assert float(kl.abs().max()) < 1e-6
    LanguageModelLoss(models[2])(ids, targets)[0].backward()
    for anchored, free in zip(models[1].parameters(), models[2].parameters(), strict=True):
        torch.testing.assert_close(anchored.grad, free.grad, rtol=1e-4, atol=1e-5)


def test_bf16_and_replay_without_scored_tokens() -> None:
    base, model = (tiny_model("llama", seed=seed, dtype=torch.bfloat16) for seed in (1, 2))
    ids, targets = batch()
    states = BaseAnchor(base, WEIGHT).states(ids, REPLAYED)
    _, kl = plain(model, base, ids, targets)
    got = LanguageModelLoss(model)(ids, targets, base=states)
    torch.testing.assert_close(got[2], kl.detach(), rtol=1e-3, atol=1e-4)
    targets[REPLAYED] = -100
    got = LanguageModelLoss(model)(ids, targets, base=states)
    assert not got[2].any()
    torch.testing.assert_close(got[0], LanguageModelLoss(model)(ids, targets)[0])


def test_dropout_of_the_base_is_off() -> None:
    base = tiny_model("opt", dropout=0.5).train()
    anchor = BaseAnchor(base, WEIGHT)
    ids, _ = batch()
    first, second = (anchor.states(ids, REPLAYED).hidden for _ in range(2))
    assert torch.equal(first, second)
