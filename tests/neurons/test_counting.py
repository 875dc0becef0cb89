"""Counting against a naive loop over what the activation functions really put out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lape_ds.corpora.streams import Block
from lape_ds.errors import UserError
from lape_ds.model.ffn import ffn_layers
from lape_ds.neurons import counting
from lape_ds.neurons.counting import count_activations
from lape_ds.neurons.counts import ACTIVATION_UNIT, CountedBlocks, Counts, CountSettings
from tests.neurons.blocks import random_blocks
from tests.tiny_models import MIXTURES, MODEL_TYPES, NUM_EXPERTS, NUM_LAYERS, tiny_model

SETTINGS = CountSettings("mlt_Latn", "tiny", "f" * 64, 12, "float32")
ACTIVATION_NAMES = ("act_fn", "activation_fn", "gelu_impl", "act")  # what transformers calls them


def count(
    model: PreTrainedModel,
    blocks: list[Block],
    *,
    batch_size: int = 2,
    first: int = 0,
    sum_activations: bool = False,
) -> Counts:
    part = CountedBlocks("corpus", first, first + len(blocks), 12 * len(blocks))
    return count_activations(
        model,
        blocks,
        batch_size=batch_size,
        settings=SETTINGS,
        part=part,
        sum_activations=sum_activations,
    )


def activations(model: PreTrainedModel, input_ids: Tensor) -> list[Tensor]:
    """Outputs of every layer's activation function on one row, `[tokens, neurons]` each."""
    modules = [
        module for name, module in model.named_modules() if name.rpartition(".")[2] in ACTIVATION_NAMES
    ]
    assert len(modules) == NUM_LAYERS
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output.reshape(-1, output.shape[-1]))

    handles = [module.register_forward_hook(keep) for module in modules]
    with torch.no_grad():
        model(input_ids[None])
    for handle in handles:
        handle.remove()
    return outputs


def routed_activations(model: PreTrainedModel, input_ids: Tensor) -> list[list[dict[int, Tensor]]]:
    """By layer and token of one row: the outputs `[neurons]` of the activation function in each of its experts."""
    layers: list[list[dict[int, Tensor]]] = []

    def keep(module: Any, args: tuple[Tensor, ...]) -> None:
        states, chosen, _ = args
        gate_rows = module.gate_up_proj[:, : module.intermediate_dim]
        layers.append(
            [
                {expert: module.act_fn(gate_rows[expert] @ state) for expert in experts}
                for state, experts in zip(states, chosen.tolist(), strict=True)
            ]
        )

    handles = [layer.gate.register_forward_pre_hook(keep) for layer in ffn_layers(model)]
    with torch.no_grad():
        model(input_ids[None])
    for handle in handles:
        handle.remove()
    return layers


def naive_mixture_counts(model: PreTrainedModel, blocks: list[Block]) -> tuple[Tensor, Tensor]:
    """As `naive_counts`, but (active, expert_tokens) of a mixture."""
    size = ffn_layers(model)[0].num_neurons // NUM_EXPERTS
    active = torch.zeros(16, NUM_LAYERS, NUM_EXPERTS * size, dtype=torch.int32)
    expert_tokens = torch.zeros(16, NUM_LAYERS, NUM_EXPERTS, dtype=torch.int64)
    for block in blocks:
        num_real = int(block.attention_mask.sum())
        for layer, by_token in enumerate(routed_activations(model, block.input_ids[:num_real])):
            for position, outputs in enumerate(by_token):
                if not block.is_text[position]:
                    continue
                bucket = int(block.token_bucket[position])
                for expert, values in outputs.items():
                    expert_tokens[bucket, layer, expert] += 1
                    for neuron, value in enumerate(values.tolist()):
                        active[bucket, layer, expert * size + neuron] += value > 0
    return active, expert_tokens


def naive_counts(model: PreTrainedModel, blocks: list[Block]) -> tuple[Tensor, Tensor]:
    """One row at a time, cut where its padding begins; token by token, neuron by neuron."""
    num_neurons = ffn_layers(model)[0].num_neurons
    active = torch.zeros(16, NUM_LAYERS, num_neurons, dtype=torch.int32)
    tokens = torch.zeros(16, dtype=torch.int64)
    for block in blocks:
        num_real = int(block.attention_mask.sum())
        per_layer = [output.tolist() for output in activations(model, block.input_ids[:num_real])]
        for position in range(num_real):
            if not block.is_text[position]:
                continue
            bucket = int(block.token_bucket[position])
            tokens[bucket] += 1
            for layer, values in enumerate(per_layer):
                for neuron, value in enumerate(values[position]):
                    active[bucket, layer, neuron] += value > 0
    return active, tokens


@pytest.mark.parametrize("model_type", [name for name in MODEL_TYPES if name not in MIXTURES])
def test_equals_naive_loop(model_type: str) -> None:
    model = tiny_model(model_type)
    blocks = random_blocks(3, 12, num_padding=5)
    counts = count(model, blocks)
    active, tokens = naive_counts(model, blocks)
    assert torch.equal(counts.tokens, tokens)
    assert torch.equal(counts.active, active)
    # The case says something: neurons are active on some tokens and not on others.
    assert 0.1 < float(counts.probabilities().mean()) < 0.9


@pytest.mark.parametrize("model_type", MIXTURES)
def test_mixture_equals_naive_loop(model_type: str) -> None:
    model = tiny_model(model_type)
    blocks = random_blocks(3, 12, num_padding=5)
    counts = count(model, blocks)
    active, expert_tokens = naive_mixture_counts(model, blocks)
    assert counts.expert_tokens is not None
    assert torch.equal(counts.expert_tokens, expert_tokens)
    assert torch.equal(counts.active, active)
    # Two experts for every token; and the case says something: experts differ, gates too.
    assert torch.equal(expert_tokens.sum(-1), 2 * counts.tokens[:, None].expand(-1, NUM_LAYERS))
    assert len(expert_tokens.sum(0).unique()) > 2
    assert 0.05 < float(counts.probabilities().mean()) < 0.45


@pytest.mark.parametrize("model_type", ["llama", "phi3", "opt", "bloom", "gpt_neox", "mixtral"])
def test_sums_of_activations_equal_naive_loop(model_type: str) -> None:
    """Gated, fused, ungated, with experts: each activation rounded to its unit, added token by token."""
    model = tiny_model(model_type)
    blocks = random_blocks(3, 12, num_padding=5)
    size = ffn_layers(model)[0].neurons_per_expert
    expected = torch.zeros(NUM_LAYERS, ffn_layers(model)[0].num_neurons, dtype=torch.int64)
    for block in blocks:
        ids = block.input_ids[: int(block.attention_mask.sum())]
        for position in block.is_text.nonzero()[:, 0].tolist():
            for layer in range(NUM_LAYERS):
                if model_type in MIXTURES:
                    for expert, values in routed_activations(model, ids)[layer][position].items():
                        expected[layer, expert * size :][:size] += units(values)
                else:
                    expected[layer] += units(activations(model, ids)[layer][position])
    counts = count(model, blocks, sum_activations=True)
    assert counts.activation_sums is not None
    # Batches of two and rows of one round inside the model by an ulp or so: of a unit per token at most.
    assert int((counts.activation_sums - expected).abs().max()) <= int(counts.tokens.sum())
    assert int(expected.abs().median()) > 1000 * int(counts.tokens.sum())
    assert torch.equal(counts.active, count(model, blocks).active)
    assert not any(module._forward_pre_hooks for module in model.modules())


def units(values: Tensor) -> Tensor:
    return torch.tensor([round(value * ACTIVATION_UNIT) for value in values.tolist()])


def test_mixture_that_runs_grouped_is_counted_alike() -> None:
    """`grouped_mm` is what transformers chooses by itself; it wants an even size on a CPU."""
    model = tiny_model("mixtral", intermediate_size=24)
    expected = naive_mixture_counts(model, random_blocks(3, 12))
    model.set_experts_implementation("grouped_mm")
    counts = count(model, random_blocks(3, 12))
    assert counts.expert_tokens is not None
    assert torch.equal(counts.active, expected[0])
    assert torch.equal(counts.expert_tokens, expected[1])


def one_bucket(num_blocks: int, length: int) -> list[Block]:
    """All text, all in bucket 3."""
    blocks = random_blocks(num_blocks, length)
    for block in blocks:
        block.token_bucket.fill_(3)
        block.is_text.fill_(True)
    return blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mixture_exact_beyond_what_the_dtype_counts(dtype: torch.dtype) -> None:
    model = tiny_model("mixtral", dtype=dtype, max_position_embeddings=250)
    blocks = one_bucket(20, 250)
    counts = count(model, blocks, batch_size=20)
    seen: list[Tensor] = []
    keep = [
        layer.gate.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
        for layer in ffn_layers(model)
    ]
    with torch.no_grad():
        model(torch.stack([block.input_ids for block in blocks]))
    for handle in keep:
        handle.remove()
    expected = torch.stack([torch.bincount(chosen.flatten(), minlength=NUM_EXPERTS) for chosen in seen])
    assert counts.expert_tokens is not None
    assert int(expected.max()) > 2048
    assert torch.equal(counts.expert_tokens[3], expected)
    assert int(counts.active[3].max()) > 2048


def test_mixture_runs_as_before_when_the_count_is_over() -> None:
    model = tiny_model("mixtral")
    with torch.no_grad():
        before = model(torch.arange(3, 20)[None]).logits
        count(model, random_blocks(1, 12))
        assert torch.equal(model(torch.arange(3, 20)[None]).logits, before)
    assert not any("forward" in vars(module) for module in model.modules())


def test_attention_builds_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of [T, T] would be gigabytes at long contexts; `is_causal` says the same. Padded block included."""
    model = tiny_model("llama")
    model.set_attn_implementation("sdpa")
    attend, masks = nn.functional.scaled_dot_product_attention, []

    def spy(*args: Tensor, attn_mask: Tensor | None = None, **given: bool) -> Tensor:
        masks.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, **given)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
    blocks = random_blocks(3, 12, num_padding=5)
    counts = count(model, blocks)
    assert masks == [None] * (2 * NUM_LAYERS)
    assert torch.equal(counts.active, naive_counts(model, blocks)[0])


def test_bfloat16_equals_naive_loop() -> None:
    model = tiny_model("llama", dtype=torch.bfloat16)
    blocks = random_blocks(2, 12)
    assert torch.equal(count(model, blocks, batch_size=1).active, naive_counts(model, blocks)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_exact_beyond_what_the_dtype_counts(dtype: torch.dtype) -> None:
    """5000 tokens of one batch in one bucket: bfloat16 counts without gaps only to 256, float16 to 2048."""
    model = tiny_model("llama", dtype=dtype, max_position_embeddings=250)
    blocks = one_bucket(20, 250)
    counts = count(model, blocks, batch_size=20)
    expected = sum(
        torch.stack([(output > 0).sum(0) for output in activations(model, block.input_ids)])
        for block in blocks
    )
    assert isinstance(expected, Tensor)
    assert int(expected.max()) > 2048
    assert torch.equal(counts.active[3].long(), expected)
    assert counts.tokens.tolist() == [0, 0, 0, 5000] + [0] * 12


def test_halves_merged_equal_the_whole() -> None:
    model = tiny_model("llama")
    blocks = random_blocks(5, 12, num_padding=3)
    whole, first, second = (
        count(model, part, batch_size=1, first=start, sum_activations=True)
        for part, start in ((blocks, 0), (blocks[:2], 0), (blocks[2:], 2))
    )
    halves = first.merge(second)
    assert torch.equal(halves.active, whole.active)
    assert halves.activation_sums is not None
    assert whole.activation_sums is not None
    assert torch.equal(halves.activation_sums, whole.activation_sums)
    assert torch.equal(halves.tokens, whole.tokens)


def test_counts_only_text() -> None:
    """A block of nothing but BOS, EOS and padding counts for nothing, and has no probabilities."""
    block = random_blocks(1, 12)[0]
    block.is_text.fill_(False)
    counts = count(tiny_model("llama"), [block])
    assert int(counts.active.sum()) == int(counts.tokens.sum()) == 0
    with pytest.raises(UserError, match="mlt_Latn: no tokens"):
        counts.probabilities()


@pytest.mark.parametrize("model_type", ["llama", "opt", "gpt_neox"])
def test_head_is_never_run(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(model_type)

    def fail(*args: object) -> None:
        raise AssertionError("the head was run")

    monkeypatch.setattr(model.get_output_embeddings(), "forward", fail)
    count(model, random_blocks(1, 12))


def test_hooks_are_removed_when_text_ends_early() -> None:
    model = tiny_model("llama")

    def broken() -> Iterator[Block]:
        yield random_blocks(1, 12)[0]
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        count_activations(
            model, broken(), batch_size=1, settings=SETTINGS, part=CountedBlocks("corpus", 0, 2, 24)
        )
    assert not any(module._forward_hooks for module in model.modules())


def test_nan_in_the_model_is_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="computes NaN"):
        count(model, random_blocks(1, 12))


def test_overflow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard of the int32 sums, with the limit brought within reach."""
    monkeypatch.setattr(counting, "INT32_MAX", 5)
    with pytest.raises(UserError, match="more than 5 tokens"):
        count(tiny_model("llama"), random_blocks(4, 12))
