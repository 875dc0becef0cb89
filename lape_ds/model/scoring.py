"""Held-out likelihood: the one way in which bits per byte is computed, in training, ablation and evaluation.

Between the packed corpus's held-out documents and every table that says "bits per byte".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lape_ds.corpora.streams import NOT_SCORED, Document
from lape_ds.errors import UserError


@dataclass(frozen=True)
class _Window:
    """One row for the model: `inputs`, whose last `num_scored` outputs predict `targets`."""

    document: int
    inputs: Tensor  # int64 [length]
    targets: Tensor  # int64 [num_scored]


def score_documents(
    model: nn.Module,
    documents: Sequence[Document],
    *,
    prefix_token_id: int,
    max_length: int,
    tokens_per_batch: int,
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """Negative log-likelihood of every document, each token predicted exactly once.

    Windows are those of lm-eval's `loglikelihood_rolling`: the first starts from the prefix token, full
    windows follow, the last one reaches back for as much context as fits. Log-probabilities are float32,
    their sums float64. The windows are shared out over the ranks; every rank calls the model equally often,
    as ZeRO-3's gathers demand.

    Args:
        model: A `LanguageModelLoss`, or the engine around one; its training mode is kept.
        documents: The same on every rank.
        prefix_token_id: BOS, or EOS where the tokenizer has no BOS.
        max_length: Tokens of the longest window.
        tokens_per_batch: Upper bound of rows × longest row in one call; a single longer window still goes
            alone.
        rank: Of this process.
        world_size: Processes that call this together.

    Returns:
        float64 `[len(documents)]` in nats, on the CPU: this rank's share, to be summed over the ranks.
    """
    nll = torch.zeros(len(documents), dtype=torch.float64)
    batches = _batches(_windows(documents, prefix_token_id, max_length), tokens_per_batch)
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(batches), world_size):
            # The last round may be short: the ranks left over run its first batch too and throw the result
            # away.
            mine = first + rank if first + rank < len(batches) else first
            scores = _score_batch(model, batches[mine])
            if mine == first + rank:
                for window, score in zip(batches[mine], scores.tolist(), strict=True):
                    nll[window.document] += score
    finally:
        model.train(was_training)
    return nll


def bits_per_byte(nll_nats: float, num_bytes: int) -> float:
    """Negative log-likelihood in bits per UTF-8 byte of text.

    Raises:
        UserError: There is no text.
    """
    if num_bytes <= 0:
        raise UserError(
            "bits per byte of no text: the held-out part is empty; raise `corpus.heldout_share` or give more "
            "text"
        )
    return nll_nats / (math.log(2) * num_bytes)


def _windows(documents: Sequence[Document], prefix_token_id: int, max_length: int) -> Iterator[_Window]:
    for number, document in enumerate(documents):
        tokens = document.token_ids
        prefixed = torch.cat([tokens.new_tensor([prefix_token_id]), tokens])
        for start in range(0, len(tokens), max_length):
            stop = min(start + max_length, len(tokens))
            yield _Window(number, prefixed[max(0, stop - max_length) : stop], tokens[start:stop])


def _batches(windows: Iterator[_Window], tokens_per_batch: int) -> list[list[_Window]]:
    """Longest first, so that rows of one batch are of like length."""
    batches: list[list[_Window]] = []
    for window in sorted(windows, key=lambda window: -len(window.inputs)):
        if not batches or (len(batches[-1]) + 1) * len(batches[-1][0].inputs) > tokens_per_batch:
            batches.append([])
        batches[-1].append(window)
    return batches


@torch.no_grad()
def _score_batch(model: nn.Module, batch: list[_Window]) -> Tensor:
    """Nats per window, float64 `[B]` on the CPU. Padding is on the right: causal attention never sees it."""
    device = cast(torch.device, model.device)  # of the loss module or an engine
    inputs = nn.utils.rnn.pad_sequence([window.inputs for window in batch], batch_first=True)
    lengths = torch.tensor([len(window.inputs) for window in batch])
    mask = torch.arange(inputs.shape[1]) < lengths[:, None]
    targets = torch.full_like(inputs, NOT_SCORED)
    for row, window in enumerate(batch):
        stop = len(window.inputs)
        targets[row, stop - len(window.targets) : stop] = window.targets
    _, nll = model(
        input_ids=inputs.to(device), targets=targets.to(device), attention_mask=mask.long().to(device)
    )
    return nll.double().sum(1).cpu()
