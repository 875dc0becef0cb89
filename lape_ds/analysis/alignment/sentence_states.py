"""What a model makes of a sentence: the mean of its tokens' hidden states, layer by layer.

Below the alignment. BOS, the same before every sentence and in many models of a state far larger than all others (Sun et al.,
arXiv 2402.17762), is read by the model and left out of the mean.

Shape legend: n sentences, L layers, B sentences of a batch, T tokens of the longest, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lape_ds.errors import UserError


@torch.inference_mode()
def mean_states(
    model: PreTrainedModel,
    sentences: Sequence[Sequence[int]],
    *,
    prefix: Sequence[int],
    max_length: int,
    tokens_per_batch: int,
) -> Tensor:
    """Mean-pooled hidden states of sentences.

    Args:
        model: In eval mode, on the device where it shall run. The language-model head is never run.
        sentences: Token ids without BOS and EOS, none of them empty.
        prefix: Stands before each: BOS, of a tokenizer that has one.
        max_length: A sentence is cut to so many tokens, the prefix among them.
        tokens_per_batch: Upper bound of sentences x longest sentence in one call; a single longer one still goes alone.

    Returns:
        float32 `[L + 1, n, D]` on the CPU: the embeddings, then the output of each layer, the last one after the final norm.

    Raises:
        UserError: The model computes NaN or infinite values.
    """
    rows = [torch.tensor([*prefix, *sentence][:max_length]) for sentence in sentences]
    pooled: list[Tensor] = []
    order: list[int] = []
    for batch in _batches(rows, tokens_per_batch):
        # Padding stands at the end, where causal attention of the tokens before it does not look.
        input_ids = nn.utils.rnn.pad_sequence([rows[place] for place in batch], batch_first=True)
        lengths = torch.tensor([len(rows[place]) for place in batch])
        positions = torch.arange(input_ids.shape[1])
        attended_BT = positions < lengths[:, None]
        pooled_BT = (attended_BT & (positions >= len(prefix))).to(model.device)
        states = model.base_model(
            input_ids=input_ids.to(model.device),
            attention_mask=attended_BT.long().to(model.device),
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states
        pooled.append(torch.stack([_mean(state_BTD, pooled_BT) for state_BTD in states]).cpu())
        order += batch
    states_LnD = torch.cat(pooled, dim=1)
    if not bool(states_LnD.isfinite().all()):
        raise UserError(
            f"the model computes NaN or infinite hidden states in {str(model.dtype).removeprefix('torch.')}: try "
            "model.dtype=float32, and check the checkpoint"
        )
    return states_LnD[:, torch.tensor(order).argsort()]


def _mean(state_BTD: Tensor, pooled_BT: Tensor) -> Tensor:
    """float32 `[B, D]`."""
    sums = torch.einsum("btd,bt->bd", state_BTD.float(), pooled_BT.float())
    return sums / pooled_BT.sum(1, keepdim=True)


def _batches(rows: Sequence[Tensor], tokens_per_batch: int) -> Iterator[list[int]]:
    """Longest first, so that rows of one batch are of like length."""
    batch: list[int] = []
    longest = 0
    for place in sorted(range(len(rows)), key=lambda place: -len(rows[place])):
        if batch and (len(batch) + 1) * longest > tokens_per_batch:
            yield batch
            batch = []
        longest = longest if batch else len(rows[place])
        batch.append(place)
    if batch:
        yield batch
