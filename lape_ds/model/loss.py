"""Next-token loss without the logits: what the training engine wraps and what held-out scoring calls.

Between a causal language model and everything that needs its likelihood of a text. With 131,072 to 256,000 tokens in the
vocabulary, fp32 logits of a batch and their gradient are the largest tensors of a training by far. Here they are made for
some hundreds of tokens at a time and used up at once: forward already computes d loss / d hidden chunk by chunk, backward
only multiplies it by the incoming scalar. No logits are kept or computed twice. The idea is Liger Kernel's (arXiv 2410.10989).
On replayed tokens the divergence from the base model is computed in the same pass.

Shape suffixes: B blocks, T tokens of a block, N = B·T, C tokens of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lape_ds.corpora.streams import NOT_SCORED
from lape_ds.model.anchor import BaseStates
from lape_ds.model.ffn import LogitHead, logit_head


class LanguageModelLoss(nn.Module):
    """A causal language model that answers with negative log-likelihoods.

    Under `deepspeed.initialize` the engine wraps this module; the causal model's parameters stand under `model.`.

    Attributes:
        model: The causal language model. Its own forward is never called here.
        head: Shares the output projection's parameters with `model`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Wraps a model; its training mode is kept.

        Args:
            model: Of an architecture that `model/ffn.py` knows; parameters may be partitioned by `zero.Init`.

        Raises:
            UserError: How this model makes logits is not known.
        """
        super().__init__()
        self.model = model  # first: parameters that `head` shares are named after their place in the model
        self.head = _Head(logit_head(model))
        self.train(model.training)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    def forward(
        self,
        input_ids: Tensor,
        targets: Tensor,
        attention_mask: Tensor | None = None,
        *,
        base: BaseStates | None = None,
    ) -> tuple[Tensor, ...]:
        """Negative log-likelihood of the scored tokens, in nats.

        Args:
            input_ids: int64 [B, T].
            targets: int64 [B, T]: `targets[:, t]` is what position t is to predict; -100 where nothing is scored.
            attention_mask: [B, T], 0 on padding; None: all tokens are attended to.
            base: Adds `base.weight * KL(base || this model)` of every replayed token that is scored.

        Returns:
            The sum, fp32 scalar, differentiable; negative log-likelihood per token, fp32 [B, T], not differentiable, 0 where
            not scored; and, with `base`, the divergence per token likewise, in nats and without its weight.
        """
        outputs = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        total, *per_token = self.head(outputs[0].flatten(0, 1), targets.flatten(), base)
        return total, *(values.view(targets.shape) for values in per_token if values is not None)


class _Head(nn.Module):
    """The output projection as a module of its own, since ZeRO-3 gathers weights where their owner is called.

    It owns the parameters of the model's own projection a second time: the model keeps its names, tied embeddings
    stay tied, and the gradient arrives at the one parameter there is.
    """

    def __init__(self, head: LogitHead) -> None:
        super().__init__()
        self.weight, self.bias = head.linear.weight, head.linear.bias
        self._settings = head.scale, head.softcap

    def forward(
        self, hidden_ND: Tensor, targets_N: Tensor, base: BaseStates | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        logits = _Logits(self.weight, self.bias, *self._settings)
        with_grad = torch.is_grad_enabled()  # inside a Function it never is
        return cast(
            "tuple[Tensor, Tensor, Tensor | None]",
            _ChunkedLoss.apply(hidden_ND, self.weight, self.bias, targets_N, logits, base, with_grad),
        )


@dataclass(frozen=True)
class _Logits:
    """Logits of hidden states as the model computes them, in its dtype; see `LogitHead`."""

    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, head: LogitHead) -> _Logits:
        return cls(head.linear.weight, head.linear.bias, head.scale, head.softcap)

    def write(self, hidden_CD: Tensor, out_CV: Tensor) -> Tensor:
        if self.bias_V is None:
            torch.mm(hidden_CD, self.weight_VD.t(), out=out_CV)
        else:
            torch.addmm(self.bias_V, hidden_CD, self.weight_VD.t(), out=out_CV)
        if self.scale != 1.0:
            out_CV.mul_(self.scale)
        if self.softcap is not None:
            out_CV.div_(self.softcap).tanh_().mul_(self.softcap)
        return out_CV

    def back_through_transform(self, grad_CV: Tensor, logits_CV: Tensor) -> None:
        """Turns fp32 d / d(logits) into d / d(linear(hidden)) and leaves it in the logits' place, in the model's dtype."""
        if self.softcap is not None:  # d tanh = 1 - tanh^2
            grad_CV.mul_(1 - (logits_CV.float() / self.softcap).square_())
        if self.scale != 1.0:
            grad_CV.mul_(self.scale)
        if grad_CV is not logits_CV:
            logits_CV.copy_(grad_CV)


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Tokens whose logits exist at one time.

    On a CPU a matrix product reaches its full speed at about 256 rows (measured: 128 rows 0.8 of it, 512 all), while
    buffers beyond some ten megabytes cost page faults; so 64 MiB of fp32 logits, but no less than 128 rows and no more than
    512. A GPU needs more rows to be limited by arithmetic and not by reading the projection, and has no page faults.
    """
    if device.type == "cpu":
        return min(512, max(128, (1 << 24) // vocab_size))
    return max(512, (1 << 26) // vocab_size)


class _ChunkedLoss(torch.autograd.Function):
    """Negative log-likelihood and divergence of hidden states; keeps gradients for backward, not logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        logits: _Logits,
        base: BaseStates | None,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        wanted = [with_grad and needed for needed in ctx.needs_input_grad[:3]]
        chunks = _Chunks(hidden_ND, targets_N, logits, base, wanted)
        chunks.run()
        nll_N, kl_N = chunks.nll, chunks.kl
        ctx.save_for_backward(chunks.grad_hidden, chunks.grad_weight, chunks.grad_bias)
        total = nll_N.sum()
        if base is None or kl_N is None:
            ctx.mark_non_differentiable(nll_N)
        else:
            ctx.mark_non_differentiable(nll_N, kl_N)
            total += base.weight * kl_N.sum()
        return total, nll_N, kl_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # In place: a head's gradient is as large as the head. A second backward is refused by autograd's version check.
        scaled = [None if saved is None else saved.mul_(grads[0]) for saved in ctx.saved_tensors]
        return *scaled, None, None, None, None


class _Chunks:
    """One pass over the scored tokens; buffers are made once, since on a CPU fresh pages cost as much as the arithmetic.

    Attributes:
        nll: fp32 [N], 0 where not scored.
        kl: fp32 [N], 0 where not scored or not replayed; None without a base.
        grad_hidden: d loss / d hidden [N, D], in its dtype; None if not wanted.
        grad_weight: [V, D], summed over the chunks in the weight's own dtype: in bf16 that costs one rounding a chunk,
            a sum in fp32 would cost twice the head's memory; None if not wanted.
        grad_bias: [V]; None if not wanted.
    """

    def __init__(
        self,
        hidden_ND: Tensor,
        targets_N: Tensor,
        logits: _Logits,
        base: BaseStates | None,
        wanted: list[bool],
    ) -> None:
        self._hidden, self._targets, self._logits, self._base = hidden_ND, targets_N, logits, base
        self._with_grad = any(wanted)
        self.nll = torch.zeros(len(targets_N), dtype=torch.float32, device=targets_N.device)
        self.kl = None if base is None else torch.zeros_like(self.nll)
        self.grad_hidden, self.grad_weight, self.grad_bias = (
            torch.zeros_like(tensor) if tensor is not None and needed else None
            for tensor, needed in zip((hidden_ND, logits.weight_VD, logits.bias_V), wanted, strict=True)
        )

    def run(self) -> None:
        """Fills the attributes."""
        vocab_size = len(self._logits.weight_VD)
        size = chunk_rows(vocab_size, self._hidden.device)
        scored = (self._targets != NOT_SCORED).nonzero().view(-1)
        buffer_CV = self._hidden.new_empty(min(size, len(scored)), vocab_size)
        # The softmax overwrites fp32 logits, unless the slope of a cap is to be had from them afterwards.
        in_place = buffer_CV.dtype == torch.float32 and self._logits.softcap is None
        probs_buffer_CV = buffer_CV if in_place else torch.empty_like(buffer_CV, dtype=torch.float32)
        for rows, base_CV in self._chunks(
            scored, size
        ):  # a batch with nothing scored makes one chunk of no rows
            hidden_CD = self._hidden.index_select(0, rows)
            logits_CV = self._logits.write(hidden_CD, buffer_CV[: len(rows)])
            probs_CV = logits_CV if in_place else probs_buffer_CV[: len(rows)].copy_(logits_CV)
            grad_CV = self._grad_of_logits(rows, probs_CV, base_CV)
            if self._with_grad:
                self._logits.back_through_transform(grad_CV, logits_CV)
                self._accumulate(rows, hidden_CD, logits_CV)

    def _chunks(self, scored: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Token numbers of each chunk, and the base model's logits there [C, V], fp32, if they are replayed tokens."""
        if self._base is None:
            yield from ((rows, None) for rows in scored.split(size))
            return
        base, logits = self._base, _Logits.of(self._base.head)
        places = base.index.flatten()[scored]
        yield from ((rows, None) for rows in scored[places < 0].split(size))
        replayed = scored[places >= 0].split(size), places[places >= 0].split(size)
        for rows, base_rows in zip(*replayed, strict=True):
            hidden_CD = base.hidden.index_select(0, base_rows)
            out_CV = hidden_CD.new_empty(len(rows), len(logits.weight_VD))
            yield rows, logits.write(hidden_CD, out_CV).float()

    def _grad_of_logits(self, rows: Tensor, logits_CV: Tensor, base_CV: Tensor | None) -> Tensor:
        """Notes the losses of a chunk and turns its fp32 logits, in place, into d loss / d logits."""
        target_C1 = self._targets[rows][:, None]
        if base_CV is None:
            self.nll[rows] = _softmax_(logits_CV, target_C1)
        else:
            assert self._base is not None
            assert self.kl is not None
            self.nll[rows], self.kl[rows] = _anchored_softmax_(
                logits_CV, target_C1, base_CV, self._base.weight
            )
        return logits_CV.scatter_add_(1, target_C1, logits_CV.new_full(target_C1.shape, -1.0))

    def _accumulate(self, rows: Tensor, hidden_CD: Tensor, grad_CV: Tensor) -> None:
        if self.grad_hidden is not None:
            self.grad_hidden.index_copy_(0, rows, grad_CV @ self._logits.weight_VD)
        if self.grad_weight is not None:
            self.grad_weight.addmm_(grad_CV.t(), hidden_CD)
        if self.grad_bias is not None:
            self.grad_bias.add_(grad_CV.sum(0))


def _softmax_(logits_CV: Tensor, target_C1: Tensor) -> Tensor:
    """Overwrites fp32 logits by probabilities p; returns -log p of the targets, fp32 [C]."""
    logits_CV.sub_(logits_CV.amax(1, keepdim=True))
    target_logit_C1 = logits_CV.gather(1, target_C1)
    total_C1 = logits_CV.exp_().sum(1, keepdim=True)
    logits_CV.div_(total_C1)
    return (total_C1.log_() - target_logit_C1).view(-1)


def _anchored_softmax_(
    logits_CV: Tensor, target_C1: Tensor, base_CV: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """The same with the divergence of p from the base's q; overwrites both fp32 logits.

    d KL(q || p) / d logits = p - q, so the logits become p + weight * (p - q).

    Returns:
        -log p of the targets and KL(q || p), each fp32 [C].
    """
    _log_softmax_(logits_CV)
    _log_softmax_(base_CV)
    nll_C = -logits_CV.gather(1, target_C1).view(-1)
    log_ratio_CV = base_CV - logits_CV
    kl_C = log_ratio_CV.mul_(base_CV.exp_()).sum(1)
    logits_CV.exp_().mul_(1 + weight).sub_(base_CV, alpha=weight)
    return nll_C, kl_C


def _log_softmax_(logits_CV: Tensor) -> None:
    logits_CV.sub_(logits_CV.amax(1, keepdim=True))
    logits_CV.sub_(logits_CV.exp().sum(1, keepdim=True).log_())
