"""Mixture and order of training samples."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from lape_ds.corpora.loader import TrainingBlocks, permuted
from lape_ds.corpora.streams import DOCUMENT, TokenStream
from lape_ds.corpora.tokenizing import flatten, token_layout
from tests.conftest import byte_tokenizer

LAYOUT = token_layout(byte_tokenizer())


def stream_of(num_blocks, block_length=8):
    """One document that fills `num_blocks` blocks, the last one by half."""
    ids = (np.arange(num_blocks * block_length - 2 - block_length // 2) % 200 + 3).tolist()
    index = np.zeros(1, DOCUMENT)
    index["end"] = len(ids) + 2
    return TokenStream(flatten([ids], LAYOUT), index, layout=LAYOUT)


def blocks_of(sizes, **settings):
    mixture = {code: (stream_of(size), weight) for code, (size, weight) in sizes.items()}
    return TrainingBlocks(mixture, **{"block_length": 8, "seed": 0, **settings})


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_permutation_is_one(size):
    orders = [[permuted(place, size, key=key) for place in range(size)] for key in ("a", "b")]
    for order in orders:
        assert sorted(order) == list(range(size))
    if size > 5:
        assert orders[0] != orders[1]
        assert orders[0] != list(range(size))


def test_permutation_is_even():
    """Where a place of 8 goes over 8000 keys: 1000 each, sd 30; five sd either way."""
    for place in (0, 3, 7):
        counts = Counter(permuted(place, 8, key=str(key)) for key in range(8000))
        assert all(abs(counts[other] - 1000) < 150 for other in range(8))


def test_permutation_of_a_billion_blocks_costs_nothing():
    places = [permuted(place, 10**9 + 7, key="x") for place in range(2000)]
    assert len(set(places)) == 2000
    assert max(places) < 10**9 + 7
    assert abs(np.mean(places) / 10**9 - 0.5) < 5 * 0.29 / 2000**0.5


def test_an_epoch_is_every_block_once_and_the_next_in_another_order():
    blocks = blocks_of({"mlt_Latn": (37, 1.0)})
    assert blocks.num_blocks == 37
    samples = [sample for step in range(4 * 37) for sample in blocks.batch(step, global_batch_size=1)]
    epochs = [[index for _, index in samples[start : start + 37]] for start in range(0, len(samples), 37)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_batches_depend_on_seed_and_step_alone():
    sizes = {"mlt_Latn": (50, 3.0), "eng_Latn": (20, 1.0)}
    one, other = blocks_of(sizes), blocks_of(sizes)
    late = other.batch(9, global_batch_size=12)  # resumed: nothing before was asked for
    run = [one.batch(step, global_batch_size=12) for step in range(10)]
    assert run[9] == late
    # Another number of ranks or accumulation steps: the same samples in the same order.
    flat = [sample for batch in run for sample in batch]
    assert flat == [sample for step in range(30) for sample in other.batch(step, global_batch_size=4)]
    assert flat != [
        s for step in range(10) for s in blocks_of(sizes, seed=1).batch(step, global_batch_size=12)
    ]


@pytest.mark.parametrize("num_samples", [100, 1000, 16_384, 40_000])
def test_shares_of_any_stretch(num_samples):
    """Each share to within 20 samples of what is asked: a random draw of 40,000 would stray by 100 to 500."""
    mixture = {"mlt_Latn": (stream_of(30), 3.0), "isl_Latn": (stream_of(10), 1.0)}
    replay = {"eng_Latn": (stream_of(25), 1.0), "deu_Latn": (stream_of(5), 4.0)}
    blocks = TrainingBlocks(mixture, block_length=8, seed=5, replay=replay, replay_share=0.2)
    expected = {"mlt_Latn": 0.6, "isl_Latn": 0.2, "eng_Latn": 0.04, "deu_Latn": 0.16}
    assert blocks.shares == pytest.approx(expected)
    assert blocks.num_blocks == 50  # 40 trained blocks and a fifth of all replay
    for start in (0, 12_345):
        counts = Counter(
            blocks.batch(n, global_batch_size=1)[0][0] for n in range(start, start + num_samples)
        )
        for code, share in expected.items():
            assert abs(counts[code] - share * num_samples) <= 20


def test_a_small_language_comes_round_again_evenly():
    blocks = blocks_of({"mlt_Latn": (400, 1.0), "isl_Latn": (3, 1.0)})
    counts = Counter(sample for step in range(60) for sample in blocks.batch(step, global_batch_size=10))
    small = [counts["isl_Latn", index] for index in range(3)]
    assert sum(small) == pytest.approx(300, abs=5)
    assert max(small) - min(small) <= 1
    assert max(counts["mlt_Latn", index] for index in range(400)) == 1


def test_a_tiny_weight_is_not_forgotten():
    blocks = blocks_of({"mlt_Latn": (5, 1e9), "isl_Latn": (5, 1.0)})
    codes = [blocks.batch(number, global_batch_size=1)[0][0] for number in range(16_384)]
    assert codes.count("isl_Latn") == 1


def test_collate():
    replay = {"eng_Latn": (stream_of(3), 1.0)}
    blocks = blocks_of({"mlt_Latn": (3, 1.0)}, replay=replay, replay_share=0.5)
    batch = blocks.collate([("eng_Latn", 2), ("mlt_Latn", 0)])
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == {
        "input_ids": ((2, 8), torch.int64),
        "targets": ((2, 8), torch.int64),
        "attention_mask": ((2, 8), torch.bool),
        "is_replay": ((2,), torch.bool),
    }
    assert batch["is_replay"].tolist() == [True, False]
    assert batch["attention_mask"].sum(1).tolist() == [4, 8]
    # Block 0 begins with BOS; block 2 is padded from position 4 on.
    following = [[*row[1:], -100] for row in batch["input_ids"].tolist()]
    assert batch["targets"].tolist() == [following[0][:3] + [-100] * 5, following[1]]


@pytest.mark.parametrize(("replay", "share"), [({}, 0.1), ({"eng_Latn": (stream_of(2), 1.0)}, 0.0)])
def test_replay_must_fit(replay, share):
    mixture = {"mlt_Latn": (stream_of(2), 1.0)}
    with pytest.raises(ValueError, match="replay share"):
        TrainingBlocks(mixture, block_length=8, seed=0, replay=replay, replay_share=share)
    with pytest.raises(ValueError, match="both trained and replayed"):
        TrainingBlocks(mixture, block_length=8, seed=0, replay=mixture, replay_share=0.1)
