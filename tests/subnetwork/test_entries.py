"""Entry masks against brute force: every cut that ZeRO could make."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch

from lape_ds.errors import UserError
from lape_ds.subnetwork.entries import EntryMask, ExpertColumns, Mask, entry_masks, scatter
from tests.oracles.subnetwork import entry_positions
from tests.tiny_models import MIXTURES, tiny_model

ROWS, COLS = 4, 3
EXPERTS = 3
AXES: tuple[tuple[Literal[0, 1], int], ...] = ((0, ROWS), (1, COLS))
MASKS: list[Mask] = [
    EntryMask("w", ROWS, COLS, axis, torch.tensor(index))
    for axis, size in AXES
    for count in (1, 2, size)
    for index in [
        sorted(torch.randperm(size, generator=torch.Generator().manual_seed(count))[:count].tolist())
    ]
]
# Columns of three experts: all, the same in each, one expert without any (first, middle, last), one alone.
MASKS += [
    ExpertColumns("w", EXPERTS, ROWS, COLS, torch.tensor(index))
    for index in (list(range(9)), [1, 4, 7], [4, 5, 6], [0, 2, 7, 8], [1, 3, 4], [8])
]


def name_of(mask: Mask) -> str:
    return f"{'experts' if isinstance(mask, ExpertColumns) else f'axis{mask.axis}'}-{mask.index.tolist()}"


def numel(mask: Mask) -> int:
    return ROWS * COLS * (EXPERTS if isinstance(mask, ExpertColumns) else 1)


def positions(mask: Mask) -> list[int]:
    """Row-major positions of the selected entries, the slow way."""
    chosen = mask.index.tolist()
    if isinstance(mask, ExpertColumns):
        return [
            (expert * ROWS + row) * COLS + col
            for expert in range(EXPERTS)
            for row in range(ROWS)
            for col in range(COLS)
            if expert * COLS + col in chosen
        ]
    return [
        row * COLS + col
        for row in range(ROWS)
        for col in range(COLS)
        if (row if mask.axis == 0 else col) in chosen
    ]


@pytest.mark.parametrize("mask", MASKS, ids=name_of)
def test_any_shard_gathers_its_entries_in_order(mask: Mask) -> None:
    weight = torch.arange(float(numel(mask)))
    for start, stop in itertools.combinations(range(numel(mask) + 1), 2):
        offset = 5  # the shard lies somewhere in a larger buffer
        buffer = torch.cat([torch.full((offset,), -1.0), weight[start:stop], torch.full((2,), -1.0)])
        blocks = mask.blocks(start, stop, offset=offset, device="cpu")
        got = torch.cat([torch.empty(0), *(block.gather(buffer) for block in blocks)])
        assert got.tolist() == [place for place in positions(mask) if start <= place < stop]
        assert [block.num_entries for block in blocks] == [len(block.gather(buffer)) for block in blocks]


@pytest.mark.parametrize("mask", MASKS, ids=name_of)
def test_scatter_writes_what_gather_reads_and_nothing_else(mask: Mask) -> None:
    for start, stop in itertools.combinations(range(numel(mask) + 1), 2):
        inside = [place - start for place in positions(mask) if start <= place < stop]
        expected = torch.zeros(stop - start)
        expected[inside] = torch.arange(1.0, len(inside) + 1)
        buffer = torch.zeros(stop - start)
        scatter(mask.blocks(start, stop, offset=0, device="cpu"), buffer, torch.arange(1.0, len(inside) + 1))
        assert torch.equal(buffer, expected)


@pytest.mark.parametrize("mask", MASKS, ids=name_of)
def test_entries_before_counts(mask: Mask) -> None:
    for position in range(numel(mask) + 1):
        assert mask.entries_before(position) == sum(place < position for place in positions(mask))
    assert mask.num_entries == len(positions(mask))


def test_keep_only_survives_infinity_outside() -> None:
    grad = torch.full((ROWS, COLS), float("inf"))
    grad[1] = 2.0
    kept = EntryMask("w", ROWS, COLS, 0, torch.tensor([1])).keep_only(grad)
    assert kept.tolist() == [[0.0] * COLS, [2.0] * COLS, [0.0] * COLS, [0.0] * COLS]


@pytest.mark.parametrize("mask", MASKS, ids=name_of)
@pytest.mark.parametrize("contiguous", [True, False])
def test_keep_only_keeps_the_selected_entries(mask: Mask, contiguous: bool) -> None:
    shape = (EXPERTS, ROWS, COLS) if isinstance(mask, ExpertColumns) else (ROWS, COLS)
    grad = torch.arange(1.0, numel(mask) + 1).view(shape)
    if not contiguous:  # as grouped_mm leaves them
        grad = grad.transpose(-1, -2).contiguous().transpose(-1, -2)
    expected = torch.zeros(numel(mask))
    expected[positions(mask)] = grad.flatten()[positions(mask)]
    assert torch.equal(mask.keep_only(grad), expected.view(shape))


@pytest.mark.parametrize("contiguous", [True, False])
def test_keep_only_of_rows_in_a_stack(contiguous: bool) -> None:
    """The rows of all experts count as those of one tall matrix: row 1 of expert 0, rows 0 and 3 of expert 2."""
    grad = torch.arange(1.0, EXPERTS * ROWS * COLS + 1).view(EXPERTS, ROWS, COLS)
    if not contiguous:
        grad = grad.transpose(-1, -2).contiguous().transpose(-1, -2)
    expected = torch.zeros_like(grad)
    for expert, row in ((0, 1), (2, 0), (2, 3)):
        expected[expert, row] = grad[expert, row]
    mask = EntryMask("w", EXPERTS * ROWS, COLS, 0, torch.tensor([1, 2 * ROWS, 2 * ROWS + 3]))
    assert torch.equal(mask.keep_only(grad), expected)


@pytest.mark.parametrize(
    ("model_type", "neurons"),
    [(name, [(0, 0), (0, 22), (2, 7)]) for name in ("llama", "phi3")]
    + [(name, [(0, 0), (0, 22), (0, 23), (0, 91), (2, 50)]) for name in MIXTURES],
)
def test_masks_of_a_model(model_type: str, neurons: list[tuple[int, int]]) -> None:
    model = tiny_model(model_type)
    masks = entry_masks(model, torch.tensor(neurons))
    expected = entry_positions(model, neurons)
    assert masks.keys() == expected.keys()
    for name, mask in masks.items():
        selected = mask.keep_only(torch.ones_like(model.get_parameter(name)))
        assert {tuple(place) for place in selected.nonzero().tolist()} == set(expected[name])
        assert mask.num_entries == len(expected[name])


def test_neurons_outside_the_model_are_refused() -> None:
    with pytest.raises(UserError, match=r"neuron \(layer 3, index 0\) is not in this model"):
        entry_masks(tiny_model("llama"), torch.tensor([[3, 0]]))
    with pytest.raises(UserError, match=r"neuron \(layer 0, index 92\).* 3 layers of 92 neurons"):
        entry_masks(tiny_model("mixtral"), torch.tensor([[0, 91], [0, 92]]))


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(UserError, match="nothing would train"):
        entry_masks(tiny_model("llama"), torch.empty(0, 2, dtype=torch.int32))
