"""Counting: on how many tokens is each neuron's gate positive?

Second stage on the data's way: packed text of one language in, `Counts` out.

In a mixture of experts a neuron is active on a token if the token is routed to its expert and the gate there is
positive. How many tokens each expert got is recorded too.

Shape legend: N tokens of a batch (all rows), T tokens of a row, I neurons of a layer (of an expert), E experts, K of
them for a token, 16 document-hash buckets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lape_ds.corpora.splitting import NUM_BUCKETS
from lape_ds.corpora.streams import Block
from lape_ds.errors import UserError
from lape_ds.model.experts import run_experts
from lape_ds.model.ffn import FFNLayer, ffn_layers, parts_documents
from lape_ds.neurons.counts import ACTIVATION_UNIT, INT32_MAX, CountedBlocks, Counts, CountSettings

# Positive gates are summed by a matrix product of zeros and ones, so many tokens at a time; that bounds the extra
# memory to one buffer of [tokens, I]. float32 (a CPU) and float16 (a GPU) hold every integer up to 2**24 and 2048, so
# the product is exact whatever the order of its sums. A CPU is as fast with few tokens, which then stay in the cache; a
# GPU wants few, large products.
_CHUNK_TOKENS = {torch.float32: 128, torch.float16: 2048}


def count_activations(
    model: PreTrainedModel,
    blocks: Iterable[Block],
    *,
    batch_size: int,
    settings: CountSettings,
    part: CountedBlocks,
    sum_activations: bool = False,
    device: torch.device | None = None,
) -> Counts:
    """Counts, for every neuron, the tokens on which its activation is > 0.

    Only text is counted: no BOS, EOS or padding (`Block.is_text`). The language-model head is never run. Sums
    are exact integers, also for models in bfloat16.

    Args:
        model: In eval mode, on the device where it shall run; may be divided over ranks (ZeRO-3), of which then every one must
            make as many calls of as many batches.
        blocks: Of equal length, e.g. those of `TokenStream.block`.
        batch_size: Blocks per forward pass; does not change the result but for rounding inside the model.
        settings: Recorded in the result; `reset_positions` also says whether each document of a block sees itself only.
        part: Which blocks these are, recorded in the result.
        sum_activations: Also add up the activations themselves.
        device: Where the model computes; None: where its weights are.

    Raises:
        UserError: Unsupported architecture, more tokens in one bucket than int32 holds, or a model that
            computes NaN.
    """
    layers = ffn_layers(model)
    device = device or model.device
    counter = _BucketCounter(layers, model, device, sum_activations=sum_activations)
    base_model = model.base_model
    # Padding may hold anything; what is counted must be finite, or "not > 0" would quietly swallow NaN.
    all_finite = torch.ones((), dtype=torch.bool, device=device)
    # DeepSpeed writes into weights that it has gathered, which inference mode would not let it do afterwards.
    divided = any(hasattr(weight, "ds_id") for weight in model.parameters())
    with torch.no_grad() if divided else torch.inference_mode(), counter.attached(layers):
        for batch in _batches(blocks, batch_size):
            inputs = {"input_ids": counter.start_batch(batch)}
            if settings.reset_positions:
                inputs = _packed(model, inputs["input_ids"], batch)
            # No attention mask, or attention builds one of [T, T]. Padding stands at the end, where causal attention of
            # the text before it does not look, and is not counted itself.
            hidden = base_model(**inputs, use_cache=False).last_hidden_state
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
    expert_tokens = counter.expert_tokens() if layers[0].is_mixture else None
    activation_sums = counter.activation_sums() if sum_activations else None
    return Counts(counter.active(), counter.tokens, settings, (part,), expert_tokens, activation_sums)


def check_can_reset_positions(model: PreTrainedModel) -> None:
    """Refuses a model in which documents cannot be kept apart.

    Raises:
        UserError: It is one.
    """
    if not parts_documents(model):
        raise UserError(
            f"identify.reset_positions=true: in models of type {model.config.model_type!r} transformers does not keep the "
            "documents of a block apart by their positions; set identify.reset_positions=false"
        )


def _packed(model: PreTrainedModel, input_ids: Tensor, batch: Sequence[Block]) -> dict[str, Tensor]:
    """The batch with positions that begin at 0 with every document, or piece of one, in a block.

    Where they do not go up by one, transformers (5.23: masking_utils.find_packed_sequence_indices) begins a new sequence in the
    masks of `eager` and `sdpa`. Flash attention does so for a single row only (modeling_flash_attention_utils,
    `_is_packed_sequence`) and would else let documents see each other: the batch becomes one row, of which it makes no mask.
    """
    positions = torch.stack([block.positions for block in batch]).to(input_ids.device, non_blocking=True)
    if model.config._attn_implementation == "flash_attention_2":
        input_ids, positions = input_ids.view(1, -1), positions.view(1, -1)
    return {"input_ids": input_ids, "position_ids": positions}


def _batches(blocks: Iterable[Block], batch_size: int) -> Iterator[tuple[Block, ...]]:
    iterator = iter(blocks)
    while batch := tuple(islice(iterator, batch_size)):
        yield batch


class _BucketCounter:
    """Adds up positive gates per bucket while the model runs.

    Hooks sit on the gate modules. The experts of a mixture are one module, into which no hook sees: for that time
    it runs them one by one (model/experts.py), at no further arithmetic.

    A gate is counted by its pre-activation: SiLU, GELU and their kin are x times something positive and ReLU
    is max(x, 0), so activation > 0 exactly where x > 0 (but for x so small that the activation underflows to
    0).
    """

    def __init__(
        self,
        layers: list[FFNLayer],
        model: PreTrainedModel,
        device: torch.device,
        *,
        sum_activations: bool = False,
    ) -> None:
        first = layers[0]  # all layers are alike (model/ffn.py)
        self._model = model
        self._dtype = torch.float32 if device.type == "cpu" else torch.float16
        self._chunk_tokens = _CHUNK_TOKENS[self._dtype]
        self._device = device
        self._active = torch.zeros(
            len(layers), NUM_BUCKETS, first.num_neurons, dtype=torch.int32, device=device
        )
        self._positive = torch.empty(
            self._chunk_tokens, first.neurons_per_expert, dtype=self._dtype, device=device
        )
        self._expert_tokens = torch.zeros(
            len(layers), NUM_BUCKETS, first.num_experts, dtype=torch.int64, device=device
        )
        self._activation_sums = (
            torch.zeros(len(layers), first.num_neurons, dtype=torch.int64, device=device)
            if sum_activations
            else None
        )
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
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(
                    self._experts_run_here(layer) if layer.is_mixture else self._hooked(layer)
                )
            yield

    @contextmanager
    def _hooked(self, layer: FFNLayer) -> Iterator[None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            gate_NI = output[..., layer.gate_output_slice].reshape(-1, layer.num_neurons)
            self._add(self._active[layer.index], gate_NI, self._bucket_one_hot)
            if self._activation_sums is not None and layer.activation is not None:
                self._sum(layer.index, layer.activation(gate_NI), self.is_text)

        def sum_inputs(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._sum(layer.index, args[0].reshape(-1, layer.num_neurons), self.is_text)

        handles = [layer.gate.register_forward_hook(hook)]
        if self._activation_sums is not None and layer.activation is None:  # an activation is what down gets
            down = self._model.get_submodule(layer.slices[-1].parameter_name.removesuffix(".weight"))
            handles.append(down.register_forward_pre_hook(sum_inputs))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _experts_run_here(self, layer: FFNLayer) -> Iterator[None]:
        active = self._active[layer.index].unflatten(1, (layer.num_experts, -1))  # a view [16, E, I]
        expert_tokens = self._expert_tokens[layer.index]

        def see(expert: int, tokens: Tensor, gate_up: Tensor) -> None:
            bucket_one_hot = self._bucket_one_hot[:, tokens]
            expert_tokens[:, expert] += bucket_one_hot.sum(1, dtype=torch.int64)
            gate_nI = gate_up[:, layer.gate_output_slice]
            self._add(active[:, expert], gate_nI, bucket_one_hot)
            if self._activation_sums is not None and layer.activation is not None:
                self._sum(layer.index, layer.activation(gate_nI), self.is_text[tokens], expert=expert)

        def forward(hidden_ND: Tensor, top_k_index_NK: Tensor, top_k_weights_NK: Tensor) -> Tensor:
            return run_experts(layer.gate, hidden_ND, top_k_index_NK, top_k_weights_NK, see)

        module: Any = layer.gate
        module.forward = forward  # hides the class's own
        try:
            yield
        finally:
            del module.forward

    def _add(self, active_16I: Tensor, gate_nI: Tensor, bucket_one_hot: Tensor) -> None:
        """Adds the positive gates of some tokens to a layer's (an expert's) counts, in place."""
        for start in range(0, len(gate_nI), self._chunk_tokens):
            chunk = gate_nI[start : start + self._chunk_tokens]
            positive = torch.gt(chunk, 0, out=self._positive[: len(chunk)])
            active_16I += (bucket_one_hot[:, start : start + len(chunk)] @ positive).to(torch.int32)

    def _sum(self, layer: int, activations_nI: Tensor, is_text_n: Tensor, *, expert: int = 0) -> None:
        """Adds the activations of a layer (an expert) on some tokens, those of text, in whole units.

        As whole numbers they add up to the same sum in any order, so that counts of parts merge into the counts of the
        whole.
        """
        assert self._activation_sums is not None
        size = activations_nI.shape[1]
        sums_I = self._activation_sums[layer, expert * size : (expert + 1) * size]
        for start in range(0, len(activations_nI), self._chunk_tokens):
            stop = start + self._chunk_tokens
            text = activations_nI[start:stop][is_text_n[start:stop]]
            sums_I += (text.double() * ACTIVATION_UNIT).round().long().sum(0)

    def activation_sums(self) -> Tensor:
        """int64 `[L, neurons]` on the CPU, in `ACTIVATION_UNIT`-ths."""
        assert self._activation_sums is not None
        return self._activation_sums.cpu()

    def active(self) -> Tensor:
        """int32 `[16, L, neurons]` on the CPU."""
        return self._active.transpose(0, 1).contiguous().cpu()

    def expert_tokens(self) -> Tensor:
        """int64 `[16, L, E]` on the CPU: tokens by the expert to which they were routed."""
        return self._expert_tokens.transpose(0, 1).contiguous().cpu()
