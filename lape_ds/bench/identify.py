"""`lape-ds bench identify`: counting beside a bare forward pass and beside the usual loop with hooks.

The room's other command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lape_ds.bench.record import new_record, write_record
from lape_ds.bench.rounds import Spread, interleave, recorded_ratios
from lape_ds.bench.shapes import Shape, build_model, check_runs, choose_shape
from lape_ds.bench.team import Team
from lape_ds.corpora.splitting import NUM_BUCKETS
from lape_ds.corpora.streams import Block
from lape_ds.model.meters import peak_bytes, storage_bytes
from lape_ds.neurons.counting import count_activations
from lape_ds.neurons.counts import CountedBlocks, CountSettings

WAYS = {
    "floor": "a bare forward pass without the head",
    "counting": "count_activations",
    "hooks": "hooks on the activation functions, (output > 0).sum, through the whole causal model",
}
WARMUP_ROUNDS = 2
BATCHES_PER_TURN = 4
_DOCUMENT_TOKENS = 60


def bench_identify(
    shape_name: str | None,
    *,
    rounds: int,
    seed: int,
    out: Path,
    num_ranks: int = 1,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Measures the ways to go through text and writes the record, JSON and a Markdown table beside it.

    Args:
        shape_name: Of `SHAPES`; None: the 100 M shape, or Llama-3.1-8B's where there is a GPU.
        rounds: Counted ones; two more go before them.
        seed: Of weights, tokens and orders.
        out: The JSON file.
        num_ranks: Where there are several, counting and the forward pass are also measured on so many ranks side by side.
        dtype: Of the weights; None: bfloat16, and float32 too where the shape is not a large one.

    Raises:
        UserError: No such shape, one that needs a GPU, or fewer GPUs than ranks.
    """
    shape_name, shape, device = choose_shape(shape_name)
    check_runs(shape_name, shape, device)
    record = new_record("identify", measured=True)
    record["settings"] = {
        "shape": shape_name,
        "config": dict(shape.config),
        "batch_size": shape.batch_size,
        "sequence_length": shape.sequence_length,
        "batches_per_turn": BATCHES_PER_TURN,
        "rounds": rounds,
        "warmup_rounds": WARMUP_ROUNDS,
        "seed": seed,
    }
    usual = (torch.bfloat16,) if shape.large else (torch.float32, torch.bfloat16)
    dtypes = usual if dtype is None else (dtype,)
    record["dtypes"] = {
        str(dtype).removeprefix("torch."): _measure(replace(shape, dtype=dtype), device, rounds, seed)
        for dtype in dtypes
    }
    if num_ranks > 1:
        record["ranks"] = {
            str(num_ranks): {
                str(dtype).removeprefix("torch."): _measure_ranks(
                    replace(shape, dtype=dtype, checkpointing=False), device, num_ranks, rounds, seed
                )
                for dtype in dtypes
            }
        }
    write_record(record, out)
    return record


def _measure(shape: Shape, device: torch.device, rounds: int, seed: int) -> dict[str, Any]:
    model = build_model(replace(shape, checkpointing=False), device, seed).eval()
    blocks = random_blocks(shape, BATCHES_PER_TURN * shape.batch_size, seed)
    turns = ways(model, blocks, shape)
    weights = [*model.parameters(), *model.buffers()]
    peaks = {name: storage_bytes(weights) + peak_bytes(turn, device, weights) for name, turn in turns.items()}
    seconds = interleave(
        turns,
        rounds=rounds,
        warmup=WARMUP_ROUNDS,
        seed=seed,
        device=device,
        description=f"Forward passes, {shape.dtype}",
    )
    found = _recorded(seconds, BATCHES_PER_TURN * shape.num_tokens)
    for name, peak in peaks.items():
        found["methods"][name]["peak"] = peak
    return found


def _measure_ranks(
    shape: Shape, device: torch.device, num_ranks: int, rounds: int, seed: int
) -> dict[str, Any]:
    with Team(shape, num_ranks=num_ranks, batches=BATCHES_PER_TURN, seed=seed) as team:
        seconds = interleave(
            {name: partial(team.turn, name) for name in ("floor", "counting")},
            rounds=rounds,
            warmup=WARMUP_ROUNDS,
            seed=seed,
            device=device,
            description=f"Forward passes, {num_ranks} ranks, {shape.dtype}",
        )
    return _recorded(seconds, num_ranks * BATCHES_PER_TURN * shape.num_tokens)


def _recorded(seconds: Mapping[str, Sequence[float]], num_tokens: int) -> dict[str, Any]:
    """What is kept of the ways' times for so many tokens."""
    return {
        "methods": {
            name: {
                "what": WAYS[name],
                "seconds": asdict(Spread.of(taken)),
                "tokens_per_second": num_tokens / Spread.of(taken).median,
            }
            for name, taken in seconds.items()
        },
        **recorded_ratios(seconds),
    }


def random_blocks(shape: Shape, num_blocks: int, seed: int) -> list[Block]:
    """Packed blocks of random tokens: documents of 60 tokens, each in a random bucket."""
    generator = torch.Generator().manual_seed(seed)
    length = shape.sequence_length
    document = torch.arange(length) // _DOCUMENT_TOKENS
    everything = torch.ones(length, dtype=torch.bool)
    blocks = []
    for _ in range(num_blocks):
        ids = torch.randint(shape.config["vocab_size"], (length,), generator=generator)
        buckets = torch.randint(NUM_BUCKETS, (length,), generator=generator).to(torch.uint8)[document]
        blocks.append(
            Block(ids, ids, everything, buckets, everything, torch.arange(length) % _DOCUMENT_TOKENS)
        )
    return blocks


def ways(
    model: PreTrainedModel, blocks: Sequence[Block], shape: Shape
) -> dict[str, Callable[[], Tensor | None]]:
    """The three ways to go through the blocks; the two that count return what they counted, int [L, I]."""
    settings = CountSettings("und", "random weights", "0" * 64, shape.sequence_length, str(shape.dtype))
    part = CountedBlocks("random", 0, len(blocks), len(blocks) * shape.sequence_length)

    def floor() -> None:
        with torch.inference_mode():
            for input_ids in _batches(model, blocks, shape.batch_size):
                model.base_model(input_ids=input_ids, use_cache=False)

    def counting() -> Tensor:
        counts = count_activations(model, blocks, batch_size=shape.batch_size, settings=settings, part=part)
        return counts.active.sum(0)

    def hooks() -> Tensor:
        sums = torch.zeros(shape.num_layers, shape.num_neurons, dtype=torch.int64, device=model.device)
        handles = [
            module.register_forward_hook(_summing(sums[layer]))
            for layer, module in enumerate(_activations(model))
        ]
        with torch.no_grad():
            for input_ids in _batches(model, blocks, shape.batch_size):
                model(input_ids=input_ids)
        for handle in handles:
            handle.remove()
        return sums

    return {"floor": floor, "counting": counting, "hooks": hooks}


def _batches(model: PreTrainedModel, blocks: Sequence[Block], size: int) -> Iterator[Tensor]:
    for start in range(0, len(blocks), size):
        yield torch.stack([block.input_ids for block in blocks[start : start + size]]).to(model.device)


def _activations(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(".act_fn")]


def _summing(sums: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        sums.add_((output > 0).sum(dim=(0, 1)))

    return hook
