"""Counting: on how many tokens is each neuron's gate positive?

Second stage on the data's way: packed text of one language in, `Counts` out.

Shape legend: N tokens of a batch (all rows), T tokens of a row, I neurons of a layer, 16 document-hash
buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lape_ds.corpora.splitting import NUM_BUCKETS
from lape_ds.corpora.streams import Block
from lape_ds.errors import UserError
from lape_ds.model.ffn import FFNLayer, ffn_layers
from lape_ds.neurons.counts import INT32_MAX, CountedBlocks, Counts, CountSettings

# Positive gates are summed by a matrix product of zeros and ones, so many tokens at a time; that bounds the extra
# memory to one buffer of [tokens, I]. int8 (a CPU; its products add up in int32) is as fast with few, which then
# stay in the cache. float16 (a GPU) holds every integer up to 2048, so the product is exact whatever the order of
# its sums, and a GPU wants few, large products.
_CHUNK_TOKENS = {torch.int8: 256, torch.float16: 2048}


def count_activations(
    model: PreTrainedModel,
    blocks: Iterable[Block],
    *,
    batch_size: int,
    settings: CountSettings,
    part: CountedBlocks,
) -> Counts:
    """Counts, for every neuron, the tokens on which its activation is > 0.

    Only text is counted: no BOS, EOS or padding (`Block.is_text`). The language-model head is never run. Sums
    are exact integers, also for models in bfloat16.

    Args:
        model: In eval mode, on the device where it shall run.
        blocks: Of equal length, e.g. those of `TokenStream.block`.
        batch_size: Blocks per forward pass; does not change the result but for rounding inside the model.
        settings: Recorded in the result.
        part: Which blocks these are, recorded in the result.

    Raises:
        UserError: Unsupported architecture, more tokens in one bucket than int32 holds, or a model that
            computes NaN.
    """
    layers = ffn_layers(model)
    counter = _BucketCounter(layers, model.device)
    base_model = model.base_model
    # Padding may hold anything; what is counted must be finite, or "not > 0" would quietly swallow NaN.
    all_finite = torch.ones((), dtype=torch.bool, device=model.device)
    with torch.inference_mode(), counter.attached(layers):
        for batch in _batches(blocks, batch_size):
            # No attention mask, or attention builds one of [T, T]. Padding stands at the end, where causal attention of
            # the text before it does not look, and is not counted itself.
            hidden = base_model(input_ids=counter.start_batch(batch), use_cache=False).last_hidden_state
            row_sums = hidden.flatten(0, 1).sum(
                1, dtype=torch.float32
            )  # NaN or infinite where any of its terms is
            all_finite &= (row_sums.isfinite() | ~counter.is_text).all()
    if not bool(all_finite):
        raise UserError(
            f"the model {settings.model_id} computes NaN or infinite values on text of {settings.language} "
            f"in {settings.dtype}: "
            "its counts would be wrong; try `model.dtype=float32`, and check the checkpoint"
        )
    return Counts(counter.active(), counter.tokens, settings, (part,))


def _batches(blocks: Iterable[Block], batch_size: int) -> Iterator[tuple[Block, ...]]:
    iterator = iter(blocks)
    while batch := tuple(islice(iterator, batch_size)):
        yield batch


class _BucketCounter:
    """Adds up positive gates per bucket while the model runs; its hooks sit on the gate modules.

    A gate is counted by its pre-activation: SiLU, GELU and their kin are x times something positive and ReLU
    is max(x, 0), so activation > 0 exactly where x > 0 (but for x so small that the activation underflows to
    0).
    """

    def __init__(self, layers: list[FFNLayer], device: torch.device) -> None:
        num_neurons = layers[0].num_neurons
        self._dtype = torch.int8 if device.type == "cpu" else torch.float16
        self._chunk_tokens = _CHUNK_TOKENS[self._dtype]
        self._device = device
        self._active = torch.zeros(len(layers), NUM_BUCKETS, num_neurons, dtype=torch.int32, device=device)
        self._positive = torch.empty(self._chunk_tokens, num_neurons, dtype=self._dtype, device=device)
        self._bucket_one_hot = torch.empty(NUM_BUCKETS, 0, dtype=self._dtype, device=device)
        self.is_text = torch.empty(0, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(NUM_BUCKETS, dtype=torch.int64)

    def start_batch(self, batch: tuple[Block, ...]) -> Tensor:
        """Books the batch's tokens and returns its ids on the device, int64 `[B, T]`."""
        is_text = torch.stack([block.is_text for block in batch]).flatten()
        bucket = torch.stack([block.token_bucket for block in batch]).flatten().long()
        self.tokens += torch.bincount(bucket[is_text], minlength=NUM_BUCKETS)
        if int(self.tokens.max()) > INT32_MAX:
            raise UserError(
                f"more than {INT32_MAX} tokens in one of {NUM_BUCKETS} buckets; lower "
                "`identify.tokens_per_language`"
            )
        # A column without a one (BOS, EOS, padding) counts nowhere.
        one_hot = (bucket == torch.arange(NUM_BUCKETS)[:, None]) & is_text
        self._bucket_one_hot = one_hot.to(self._device, self._dtype, non_blocking=True)
        self.is_text = is_text.to(self._device, non_blocking=True)
        return torch.stack([block.input_ids for block in batch]).to(self._device, non_blocking=True)

    @contextmanager
    def attached(self, layers: list[FFNLayer]) -> Iterator[None]:
        """Counts while the context is open."""
        handles = [layer.gate.register_forward_hook(self._hook(layer)) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, layer: FFNLayer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            gate_NI = output[..., layer.gate_output_slice].reshape(-1, layer.num_neurons)
            for start in range(0, len(gate_NI), self._chunk_tokens):
                chunk = gate_NI[start : start + self._chunk_tokens]
                positive = torch.gt(chunk, 0, out=self._positive[: len(chunk)])
                in_bucket = self._bucket_one_hot[:, start : start + len(chunk)]
                self._active[layer.index] += _sum_rows(in_bucket, positive)

        return add

    def active(self) -> Tensor:
        """int32 `[16, L, I]` on the CPU."""
        return self._active.transpose(0, 1).contiguous().cpu()


def _sum_rows(in_bucket: Tensor, positive: Tensor) -> Tensor:
    """The exact product [16, n] @ [n, I] of zeros and ones, int32."""
    if positive.dtype == torch.int8:
        return torch.ops.aten._int_mm(in_bucket, positive)
    return (in_bucket @ positive).to(torch.int32)
