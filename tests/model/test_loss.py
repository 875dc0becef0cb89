"""The chunked loss against the models' own logits and plain autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from lape_ds.errors import UserError
from lape_ds.model import loss as loss_module
from lape_ds.model.loss import LanguageModelLoss
from tests.tiny_models import MODEL_TYPES, VOCAB_SIZE, tiny_model

# Set so that what they do cannot be missed: a cap below the largest logits, scales far from 1.
_TRANSFORMS: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.37},
    "cohere2": {"logit_scale": 0.37},
    "granite": {"logits_scaling": 3.0},
    "gemma2": {"final_logit_softcapping": 0.9},
    "gemma3_text": {"final_logit_softcapping": 0.9},
}
CASES = [(kind, {}) for kind in MODEL_TYPES] + list(_TRANSFORMS.items())
CASES += [("gemma2", {"final_logit_softcapping": None}), ("llama", {"tie_word_embeddings": True})]
CASES += [("opt", {"word_embed_proj_dim": 8})]  # hidden states are projected before the head
IDS = [kind + "".join(f"-{key}={value}" for key, value in changes.items()) for kind, changes in CASES]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one ragged."""
    monkeypatch.setattr(loss_module, "chunk_rows", lambda vocab_size, device: 7)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and targets [3, 11], a third of them not scored, among them a row's end and a whole row."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB_SIZE, (3, 11), generator=generator)
    targets = torch.randint(0, VOCAB_SIZE, (3, 11), generator=generator)
    targets[0, :4] = targets[1, -2:] = targets[2] = -100
    return ids, targets


def plain(model: PreTrainedModel, ids: Tensor, targets: Tensor) -> Tensor:
    """The oracle: per-token loss of the model's own whole logits [B, T]."""
    logits = model(input_ids=ids, use_cache=False).logits.float()
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(
        targets
    )


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


@pytest.mark.parametrize(("model_type", "changes"), CASES, ids=IDS)
def test_equals_the_models_own_logits(model_type: str, changes: dict[str, Any]) -> None:
    """Losses and the gradients of every parameter, head and embeddings (tied or not) among them."""
    expected_model, model = (tiny_model(model_type, **changes) for _ in range(2))
    ids, targets = batch()
    expected = plain(expected_model, ids, targets)
    (3.0 * expected.sum()).backward()
    total, nll = LanguageModelLoss(model)(ids, targets)
    (3.0 * total).backward()
    torch.testing.assert_close(nll, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total, expected.sum(), rtol=1e-5, atol=0.0)
    assert total.dtype == nll.dtype == torch.float32
    assert not nll.requires_grad
    wanted, got = gradients(expected_model), gradients(model)
    assert got.keys() == wanted.keys()
    # Some are zero but for rounding (a bias of keys moves no attention).
    largest = max(float(grad.abs().max()) for grad in wanted.values())
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-5, atol=1e-6 * largest, msg=name)


@pytest.mark.parametrize("model_type", _TRANSFORMS)
def test_the_transforms_matter(model_type: str) -> None:
    """The settings above change the loss: a transform left out would be seen."""
    ids, targets = batch()
    first = plain(tiny_model(model_type), ids, targets)
    assert not torch.allclose(
        first, plain(tiny_model(model_type, **_TRANSFORMS[model_type]), ids, targets), rtol=1e-2
    )


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [("llama", {}), ("phi", {}), ("gemma2", _TRANSFORMS["gemma2"]), ("granite", _TRANSFORMS["granite"])],
)
def test_bf16_is_as_close_to_the_truth_as_autograd(model_type: str, changes: dict[str, Any]) -> None:
    """Error against fp32 arithmetic on the same bf16 weights: at most 1.5 times that of plain bf16 autograd.

    Two roundings differ: the loss' scale is applied after the product with the head, and its gradient is summed in bf16 over
    chunks (here four), each adding half a unit of 2^-8.
    """
    ids, targets = batch()
    models = [tiny_model(model_type, dtype=torch.bfloat16, **changes) for _ in range(3)]
    truth = models[0].float()
    plain(truth, ids, targets).sum().backward()
    plain(models[1], ids, targets).sum().backward()
    LanguageModelLoss(models[2])(ids, targets)[0].backward()
    exact, theirs, ours = map(gradients, models)
    for name in exact:
        norm = exact[name].norm()
        their_error = (theirs[name].float() - exact[name]).norm() / norm
        our_error = (ours[name].float() - exact[name]).norm() / norm
        assert our_error <= 1.5 * their_error + 2**-8, f"{name}: {our_error} against {their_error}"


def test_nothing_scored() -> None:
    """A rank whose micro-batch is all padding still takes part in the backward: zero gradients, not none."""
    model = tiny_model("llama")
    ids, _ = batch()
    total, nll = LanguageModelLoss(model)(ids, torch.full_like(ids, -100))
    total.backward()
    assert float(total.detach()) == 0.0
    assert not nll.any()
    assert gradients(model).keys() == dict(model.named_parameters()).keys()
    assert not any(grad.any() for grad in gradients(model).values())


def test_attention_mask_reaches_the_model() -> None:
    """Padding on the left changes nothing of what stands to the right of it."""
    loss = LanguageModelLoss(tiny_model("opt"))
    ids, targets = batch()
    padded = functional.pad(ids, (4, 0)), functional.pad(targets, (4, 0), value=-100)
    mask = functional.pad(torch.ones_like(ids), (4, 0))
    with torch.no_grad():
        torch.testing.assert_close(loss(*padded, attention_mask=mask)[1][:, 4:], loss(ids, targets)[1])


def test_no_gradient_is_made_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring runs one product with the head a chunk, no more."""
    monkeypatch.setattr(
        loss_module._Chunks, "_accumulate", lambda *_: pytest.fail("a gradient was computed in vain")
    )
    model = tiny_model("llama")
    ids, targets = batch()
    with torch.no_grad():
        LanguageModelLoss(model)(ids, targets)
    LanguageModelLoss(model.requires_grad_(False))(ids, targets)


@pytest.mark.parametrize("trained_head", [False, True])
def test_kept_for_backward(trained_head: bool) -> None:
    """Behind a frozen head only d / d(hidden); no logits, whatever the vocabulary."""
    model = tiny_model("llama")
    loss = LanguageModelLoss(model)
    model.lm_head.weight.requires_grad_(trained_head)
    hidden = torch.randn(33, 16, requires_grad=True)
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        loss.head(hidden, batch()[1].flatten(), None)
    assert sorted(saved) == sorted([(33, 16), (VOCAB_SIZE, 16)] if trained_head else [(33, 16)])


def test_second_backward_is_refused() -> None:
    """The kept gradient is scaled in place: used twice it would be scaled twice."""
    total, _ = LanguageModelLoss(tiny_model("llama"))(*batch())
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_names_and_ties_stay() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    before = dict(model.named_parameters())
    loss = LanguageModelLoss(model)
    assert dict(model.named_parameters()).keys() == before.keys()
    wrapped = dict(loss.named_parameters())
    assert wrapped.keys() == {f"model.{name}" for name in before}
    assert all(wrapped[f"model.{name}"] is param for name, param in before.items())
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_unknown_model_type_is_refused_by_name() -> None:
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2))
    with pytest.raises(UserError, match=r"'gpt2'.*how it makes its logits"):
        LanguageModelLoss(model)


def test_replaced_head_is_refused() -> None:
    """Its weight alone would give logits without what the replacement adds."""
    model = tiny_model("llama")
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(UserError, match="is a Sequential"):
        LanguageModelLoss(model)
