"""Entry masks against brute force: every cut that ZeRO could make."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch

from lape_ds.errors import UserError
from lape_ds.subnetwork.entries import EntryMask, entry_masks
from tests.oracles.subnetwork import entry_positions
from tests.tiny_models import tiny_model

ROWS, COLS = 4, 3
AXES: tuple[tuple[Literal[0, 1], int], ...] = ((0, ROWS), (1, COLS))
MASKS = [
    EntryMask("w", ROWS, COLS, axis, torch.tensor(index))
    for axis, size in AXES
    for count in (1, 2, size)
    for index in [
        sorted(torch.randperm(size, generator=torch.Generator().manual_seed(count))[:count].tolist())
    ]
]


def positions(mask: EntryMask) -> list[int]:
    """Row-major positions of the selected entries, the slow way."""
    return [
        row * COLS + col
        for row in range(ROWS)
        for col in range(COLS)
        if (row if mask.axis == 0 else col) in mask.index.tolist()
    ]


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"axis{mask.axis}-{mask.index.tolist()}")
def test_any_shard_gathers_its_entries_in_order(mask: EntryMask) -> None:
    weight = torch.arange(float(ROWS * COLS))
    for start, stop in itertools.combinations(range(ROWS * COLS + 1), 2):
        offset = 5  # the shard lies somewhere in a larger buffer
        buffer = torch.cat([torch.full((offset,), -1.0), weight[start:stop], torch.full((2,), -1.0)])
        blocks = mask.blocks(start, stop, offset=offset, device="cpu")
        got = torch.cat([torch.empty(0), *(block.gather(buffer) for block in blocks)])
        assert got.tolist() == [place for place in positions(mask) if start <= place < stop]
        assert [block.num_entries for block in blocks] == [len(block.gather(buffer)) for block in blocks]


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"axis{mask.axis}-{mask.index.tolist()}")
def test_scatter_writes_what_gather_reads_and_nothing_else(mask: EntryMask) -> None:
    for start, stop in itertools.combinations(range(ROWS * COLS + 1), 2):
        buffer = torch.zeros(stop - start)
        for block in mask.blocks(start, stop, offset=0, device="cpu"):
            block.scatter(buffer, torch.ones(block.num_entries))
        assert buffer.nonzero().flatten().tolist() == [
            place - start for place in positions(mask) if start <= place < stop
        ]


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"axis{mask.axis}-{mask.index.tolist()}")
def test_entries_before_counts(mask: EntryMask) -> None:
    for position in range(ROWS * COLS + 1):
        assert mask.entries_before(position) == sum(place < position for place in positions(mask))
    assert mask.num_entries == len(positions(mask))


def test_keep_only_survives_infinity_outside() -> None:
    grad = torch.full((ROWS, COLS), float("inf"))
    grad[1] = 2.0
    kept = EntryMask("w", ROWS, COLS, 0, torch.tensor([1])).keep_only(grad)
    assert kept.tolist() == [[0.0] * COLS, [2.0] * COLS, [0.0] * COLS, [0.0] * COLS]


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_masks_of_a_model(model_type: str) -> None:
    neurons = [(0, 0), (0, 22), (2, 7)]
    model = tiny_model(model_type)
    masks = entry_masks(model, torch.tensor(neurons))
    expected = entry_positions(model, neurons)
    assert masks.keys() == expected.keys()
    for name, mask in masks.items():
        selected = torch.zeros(mask.rows, mask.cols)
        selected.index_fill_(mask.axis, mask.index, 1.0)
        assert {tuple(pair) for pair in selected.nonzero().tolist()} == set(expected[name])


def test_neurons_outside_the_model_are_refused() -> None:
    with pytest.raises(UserError, match=r"neuron \(layer 3, index 0\) is not in this model"):
        entry_masks(tiny_model("llama"), torch.tensor([[3, 0]]))


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(UserError, match="nothing would train"):
        entry_masks(tiny_model("llama"), torch.empty(0, 2, dtype=torch.int32))
