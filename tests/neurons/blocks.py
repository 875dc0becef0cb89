"""Packed blocks made by hand, for tests of counting."""

from __future__ import annotations

import torch

from lape_ds.corpora.streams import Block
from tests.tiny_models import VOCAB_SIZE

BOS, EOS, PAD = 1, 2, 0


def random_blocks(num_blocks: int, block_length: int, *, num_padding: int = 0, seed: int = 0) -> list[Block]:
    """Random documents between BOS and EOS, a random bucket each; padding at the end of the last block."""
    generator = torch.Generator().manual_seed(seed)
    blocks = []
    for number in range(num_blocks):
        num_real = block_length - (num_padding if number == num_blocks - 1 else 0)
        ids = torch.randint(3, VOCAB_SIZE, (block_length,), generator=generator)
        for end in torch.randint(1, block_length, (2,), generator=generator).tolist():
            ids[end - 1], ids[end] = EOS, BOS
        ids[num_real:] = PAD
        document = (ids == BOS).cumsum(0)
        buckets = torch.randint(0, 16, (block_length + 1,), generator=generator)[document].to(torch.uint8)
        attended = torch.arange(block_length) < num_real
        is_text = attended & (ids != BOS) & (ids != EOS)
        places = torch.arange(block_length)
        positions = places - (places * (ids == BOS)).cummax(0).values
        labels = ids.where(attended & (ids != BOS), torch.tensor(-100))
        blocks.append(
            Block(
                input_ids=ids,
                labels=labels,
                attention_mask=attended,
                token_bucket=buckets,
                is_text=is_text,
                positions=positions,
            )
        )
    return blocks
