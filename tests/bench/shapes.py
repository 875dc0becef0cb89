"""A shape that takes milliseconds, for tests of the benchmarks."""

from __future__ import annotations

import torch

from lape_ds.bench.shapes import Shape

NUM_NEURONS = 48
TINY = Shape(
    "llama",
    {
        "hidden_size": 32,
        "intermediate_size": NUM_NEURONS,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 101,
    },
    torch.float32,
    batch_size=2,
    sequence_length=24,
    checkpointing=False,
    large=False,
)
NEURONS = torch.tensor([[0, 3], [0, 47], [2, 0], [2, 11], [2, 12]])
