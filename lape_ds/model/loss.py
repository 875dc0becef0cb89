"""Next-token loss without the logits: what the training engine wraps and what held-out scoring calls.

Between a causal language model and everything that needs its likelihood of a text. With 131,072 to 256,000 tokens in the
vocabulary, fp32 logits of a batch and their gradient are the largest tensors of a training by far. Here they are made for
some hundreds of tokens at a time and used up at once: forward already computes d loss / d hidden chunk by chunk, backward
only multiplies it by the incoming scalar. No logits are kept or computed twice. The idea is Liger Kernel's (arXiv 2410.10989).

Shape suffixes: B blocks, T tokens of a block, N = B·T, C tokens of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lape_ds.corpora.streams import NOT_SCORED
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
        self, input_ids: Tensor, targets: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of the scored tokens, in nats.

        Args:
            input_ids: int64 [B, T].
            targets: int64 [B, T]: `targets[:, t]` is what position t is to predict; -100 where nothing is scored.
            attention_mask: [B, T], 0 on padding; None: all tokens are attended to.

        Returns:
            The sum, fp32 scalar, differentiable; and per token, fp32 [B, T], not differentiable, 0 where not scored.
        """
        outputs = self.model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        total, nll_N = self.head(outputs[0].flatten(0, 1), targets.flatten())
        return total, nll_N.view(targets.shape)


class _Head(nn.Module):
    """The output projection as a module of its own, since ZeRO-3 gathers weights where their owner is called.

    It owns the parameters of the model's own projection a second time: the model keeps its names, tied embeddings
    stay tied, and the gradient arrives at the one parameter there is.
    """

    def __init__(self, head: LogitHead) -> None:
        super().__init__()
        self.weight = head.linear.weight
        self.bias = head.linear.bias
        self._scale, self._softcap = head.scale, head.softcap

    def forward(self, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        settings = (self._scale, self._softcap, torch.is_grad_enabled())
        return cast(
            "tuple[Tensor, Tensor]",
            _ChunkedNLL.apply(hidden_ND, self.weight, self.bias, targets_N, *settings),
        )


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Tokens whose logits exist at one time.

    On a CPU a matrix product reaches its full speed at about 256 rows (measured: 128 rows 0.8 of it, 512 all), while
    buffers beyond some ten megabytes cost page faults; so 64 MiB of fp32 logits, but no less than 128 rows and no more than
    512. A GPU needs more rows to be limited by arithmetic and not by reading the projection, and has no page faults.
    """
    if device.type == "cpu":
        return min(512, max(128, (1 << 24) // vocab_size))
    return max(512, (1 << 26) // vocab_size)


class _ChunkedNLL(torch.autograd.Function):
    """Sum and tokens' negative log-likelihood of hidden states; keeps gradients for backward, not logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        scale: float,
        softcap: float | None,
        with_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        # Autograd's flags do not know of no_grad.
        wanted = [with_grad and needed for needed in ctx.needs_input_grad[:3]]
        chunks = _Chunks(hidden_ND, weight_VD, bias_V, scale, softcap, wanted)
        nll_N = chunks.run(targets_N)
        ctx.save_for_backward(chunks.grad_hidden, chunks.grad_weight, chunks.grad_bias)
        ctx.mark_non_differentiable(nll_N)
        return nll_N.sum(), nll_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # In place: a head's gradient is as large as the head. A second backward is refused by autograd's version check.
        scaled = [None if saved is None else saved.mul_(grads[0]) for saved in ctx.saved_tensors]
        return *scaled, None, None, None, None


class _Chunks:
    """One pass over the scored tokens; buffers are made once, since on a CPU fresh pages cost as much as the arithmetic.

    Attributes:
        grad_hidden: d(sum nll) / d(hidden) [N, D], in its dtype; None if not wanted.
        grad_weight: [V, D], summed over the chunks in the weight's own dtype, as in-place accumulation in bf16 costs one
            rounding a chunk and fp32 would cost twice the head's memory; None if not wanted.
        grad_bias: [V]; None if not wanted.
    """

    def __init__(
        self,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        scale: float,
        softcap: float | None,
        wanted: list[bool],
    ) -> None:
        self._hidden, self._weight, self._bias = hidden_ND, weight_VD, bias_V
        self._scale, self._softcap, self._with_grad = scale, softcap, any(wanted)
        self.grad_hidden, self.grad_weight, self.grad_bias = (
            torch.zeros_like(tensor) if tensor is not None and needed else None
            for tensor, needed in zip((hidden_ND, weight_VD, bias_V), wanted, strict=True)
        )

    def run(self, targets_N: Tensor) -> Tensor:
        """Returns each token's negative log-likelihood, fp32 [N], 0 where not scored."""
        scored = (targets_N != NOT_SCORED).nonzero().view(-1)  # a batch with none makes one chunk of none
        size = chunk_rows(len(self._weight), self._hidden.device)
        logits_CV = self._hidden.new_empty(min(size, len(scored)), len(self._weight))
        # The softmax overwrites fp32 logits, unless the slope of a cap is to be had from them afterwards.
        in_place = logits_CV.dtype == torch.float32 and self._softcap is None
        probs_CV = logits_CV if in_place else torch.empty_like(logits_CV, dtype=torch.float32)
        nll_N = torch.zeros(len(targets_N), dtype=torch.float32, device=targets_N.device)
        for rows in scored.split(size):
            logits = logits_CV[: len(rows)]
            probs = logits if in_place else probs_CV[: len(rows)]
            nll_N[rows] = self._chunk(rows, targets_N[rows], logits, probs)
        return nll_N

    def _chunk(self, rows: Tensor, targets_C: Tensor, logits_CV: Tensor, probs_CV: Tensor) -> Tensor:
        hidden_CD = self._hidden.index_select(0, rows)
        self._write_logits(hidden_CD, logits_CV)
        if probs_CV is not logits_CV:
            probs_CV.copy_(logits_CV)
        target_C1 = targets_C[:, None]
        nll_C = _softmax_(probs_CV, target_C1)
        if not self._with_grad:
            return nll_C
        probs_CV.scatter_add_(1, target_C1, probs_CV.new_full((len(rows), 1), -1.0))
        self._through_transform_(probs_CV, logits_CV)
        self._accumulate(rows, hidden_CD, logits_CV)
        return nll_C

    def _write_logits(self, hidden_CD: Tensor, out_CV: Tensor) -> None:
        """Logits as the model computes them, in its dtype."""
        if self._bias is None:
            torch.mm(hidden_CD, self._weight.t(), out=out_CV)
        else:
            torch.addmm(self._bias, hidden_CD, self._weight.t(), out=out_CV)
        if self._scale != 1.0:
            out_CV.mul_(self._scale)
        if self._softcap is not None:
            out_CV.div_(self._softcap).tanh_().mul_(self._softcap)

    def _through_transform_(self, grad_CV: Tensor, logits_CV: Tensor) -> None:
        """Turns fp32 d / d(logits) into d / d(linear(hidden)) and leaves it in the logits' place, in the model's dtype."""
        if self._softcap is not None:  # d tanh = 1 - tanh^2
            grad_CV.mul_(1 - (logits_CV.float() / self._softcap).square_())
        if self._scale != 1.0:
            grad_CV.mul_(self._scale)
        if grad_CV is not logits_CV:
            logits_CV.copy_(grad_CV)

    def _accumulate(self, rows: Tensor, hidden_CD: Tensor, grad_CV: Tensor) -> None:
        if self.grad_hidden is not None:
            self.grad_hidden.index_copy_(0, rows, grad_CV @ self._weight)
        if self.grad_weight is not None:
            self.grad_weight.addmm_(grad_CV.t(), hidden_CD)
        if self.grad_bias is not None:
            self.grad_bias.add_(grad_CV.sum(0))


def _softmax_(logits_CV: Tensor, target_C1: Tensor) -> Tensor:
    """Overwrites fp32 logits by probabilities; returns -log p of the targets, fp32 [C]."""
    logits_CV.sub_(logits_CV.amax(1, keepdim=True))
    target_logit_C1 = logits_CV.gather(1, target_C1)
    total_C1 = logits_CV.exp_().sum(1, keepdim=True)
    logits_CV.div_(total_C1)
    return (total_C1.log_() - target_logit_C1).view(-1)
