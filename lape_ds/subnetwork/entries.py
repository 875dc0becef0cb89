"""Which entries of one weight belong to the neuron mask, and how to reach them inside any piece of it.

Between the neuron set and the masked engine. A neuron is whole rows or whole columns of a weight, so no per-entry
index is ever stored: a mask over 37 M entries of an 8B model costs kilobytes. Entries are always ordered by their
position in the row-major weight; a contiguous shard of the weight therefore holds a contiguous range of them, which is
what makes checkpoints independent of how ZeRO cut the weight.

A mixture keeps the matrices of its experts in one weight [experts, rows, cols]. The rows of all experts are the rows of
one tall matrix, so an `EntryMask` serves there too; columns are others in each expert (`ExpertColumns`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from lape_ds.errors import UserError
from lape_ds.model.ffn import FFNLayer, WeightSlice, ffn_layers, full_shape


@dataclass(frozen=True)
class Block:
    """Selected rows or columns of a 2-D window onto a flat buffer.

    Attributes:
        offset: Where the window begins in the flat buffer.
        rows: Rows of the window.
        cols: Columns of the window.
        axis: What `index` selects: rows (0) or columns (1).
        index: int64 [n], sorted.
    """

    offset: int
    rows: int
    cols: int
    axis: Literal[0, 1]
    index: Tensor

    @property
    def num_entries(self) -> int:
        """How many entries are selected."""
        return len(self.index) * (self.cols if self.axis == 0 else self.rows)

    def window(self, flat: Tensor) -> Tensor:
        """The window as a view [rows, cols]."""
        return flat.narrow(0, self.offset, self.rows * self.cols).view(self.rows, self.cols)

    def gather(self, flat: Tensor) -> Tensor:
        """Copies the selected entries out of `flat` as one vector, in row-major order."""
        return self.window(flat).index_select(self.axis, self.index).flatten()

    def scatter(self, flat: Tensor, values: Tensor) -> None:
        """Writes `values` (as `gather` gave them) back in place."""
        shape = (len(self.index), self.cols) if self.axis == 0 else (self.rows, len(self.index))
        self.window(flat).index_copy_(self.axis, self.index, values.view(shape))


@dataclass(frozen=True)
class EntryMask:
    """The trained entries of one weight [rows, cols]: whole rows (`axis` 0) or whole columns (`axis` 1).

    Attributes:
        name: The weight's name in `model.named_parameters()`.
        rows: Rows of the whole weight, however it is partitioned; of all experts together in a mixture.
        cols: Columns of the whole weight.
        axis: What `index` selects.
        index: int64 [n], sorted, without repeats.
    """

    name: str
    rows: int
    cols: int
    axis: Literal[0, 1]
    index: Tensor

    @property
    def num_entries(self) -> int:
        """Trained entries of the whole weight."""
        return self.entries_before(self.rows * self.cols)

    def keep_only(self, grad: Tensor) -> Tensor:
        """Returns `grad` (shape of the weight) with zeros outside the mask.

        Built from zeros and not by multiplication: 0 · inf is NaN, and one overflow in a weight that does not train
        must not spoil one that does.
        """
        matrix = grad.reshape(self.rows, self.cols)
        kept = torch.zeros_like(matrix)
        kept.index_copy_(self.axis, self.index, matrix.index_select(self.axis, self.index))
        return kept.view(grad.shape)

    def on(self, device: torch.device) -> EntryMask:
        """The same mask with its index on another device."""
        return replace(self, index=self.index.to(device))

    def entries_before(self, position: int) -> int:
        """How many selected entries lie before row-major `position` of the weight."""
        row, col = divmod(position, self.cols)
        if self.axis == 0:
            whole = int(torch.searchsorted(self.index, row)) * self.cols
            return whole + (col if bool((self.index == row).any()) else 0)
        return row * len(self.index) + int(torch.searchsorted(self.index, col))

    def blocks(self, start: int, stop: int, *, offset: int, device: torch.device | str) -> list[Block]:
        """The selected entries of positions [start, stop) of the weight, lying at `offset` of a flat buffer.

        ZeRO cuts a weight anywhere, in the middle of a row too: a partial first row, whole rows, a partial last row.
        """
        return [
            Block(offset + (begin - start), rows, cols, axis, index.to(device))
            for begin, rows, cols, axis, index in self._windows(start, stop)
            if len(index)
        ]

    def _windows(self, start: int, stop: int) -> Iterator[tuple[int, int, int, Literal[0, 1], Tensor]]:
        first_whole = -(-start // self.cols)
        last_whole = stop // self.cols
        if first_whole > last_whole:  # inside one row
            yield start, 1, stop - start, 1, self._row_part(start, stop)
            return
        head_stop, tail_start = first_whole * self.cols, last_whole * self.cols
        if start < head_stop:
            yield start, 1, head_stop - start, 1, self._row_part(start, head_stop)
        if first_whole < last_whole:
            index = self.index
            if self.axis == 0:
                index = index[(index >= first_whole) & (index < last_whole)] - first_whole
            yield head_stop, last_whole - first_whole, self.cols, self.axis, index
        if tail_start < stop:
            yield tail_start, 1, stop - tail_start, 1, self._row_part(tail_start, stop)

    def _row_part(self, start: int, stop: int) -> Tensor:
        """Selected columns, counted from `start`, of a part of one row."""
        row, col = divmod(start, self.cols)
        if self.axis == 0:
            return torch.arange(stop - start) if bool((self.index == row).any()) else self.index[:0]
        inside = (self.index >= col) & (self.index < col + stop - start)
        return self.index[inside] - col


@dataclass(frozen=True)
class ExpertColumns:
    """The trained entries of one weight [experts, rows, cols]: whole columns, others in each expert.

    Interface and order of the entries as in `EntryMask`: row-major over the whole weight, so expert by expert.

    Attributes:
        name: The weight's name in `model.named_parameters()`.
        num_experts: Matrices of the whole weight, however it is partitioned.
        rows: Rows of one of them.
        cols: Columns of one of them.
        index: int64 [n] of expert * cols + column, sorted, without repeats.
    """

    name: str
    num_experts: int
    rows: int
    cols: int
    index: Tensor

    @property
    def num_entries(self) -> int:
        """Trained entries of the whole weight."""
        return self.rows * len(self.index)

    def keep_only(self, grad: Tensor) -> Tensor:
        """Returns `grad` [experts, rows, cols] with zeros outside the mask."""
        expert, column = self.index // self.cols, self.index % self.cols
        kept = torch.zeros_like(grad)
        kept[expert, :, column] = grad[expert, :, column]
        return kept

    def on(self, device: torch.device) -> ExpertColumns:
        """The same mask with its index on another device."""
        return replace(self, index=self.index.to(device))

    def entries_before(self, position: int) -> int:
        """How many selected entries lie before row-major `position` of the weight."""
        expert, inside = divmod(position, self.rows * self.cols)
        earlier = int(torch.searchsorted(self.index, expert * self.cols))
        return earlier * self.rows + self._matrix(expert).entries_before(inside)

    def blocks(self, start: int, stop: int, *, offset: int, device: torch.device | str) -> list[Block]:
        """The selected entries of positions [start, stop) of the weight, lying at `offset` of a flat buffer."""
        size = self.rows * self.cols
        found: list[Block] = []
        for expert in range(start // size, -(-stop // size)):
            first = expert * size
            begin, end = max(start, first), min(stop, first + size)
            found += self._matrix(expert).blocks(
                begin - first, end - first, offset=offset + begin - start, device=device
            )
        return found

    def _matrix(self, expert: int) -> EntryMask:
        first, last = torch.searchsorted(
            self.index, torch.tensor([expert, expert + 1], device=self.index.device) * self.cols
        ).tolist()
        return EntryMask(self.name, self.rows, self.cols, 1, self.index[first:last] - expert * self.cols)


Mask = EntryMask | ExpertColumns


@torch.no_grad()
def write_part(mask: Mask, values: Tensor, start: int, read: Callable[[int, int], Tensor]) -> None:
    """Writes trained entries into a part of a weight, in place, rounded to its dtype.

    Args:
        mask: The weight's.
        values: [n], positions [start, start + n) of the flattened weight: all of it, or what a rank holds.
        start: Where the part begins.
        read: `read(first, last)` gives the entries of that range, in the order of the whole weight's.
    """
    first = mask.entries_before(start)
    for block in mask.blocks(start, start + len(values), offset=0, device=values.device):
        block.scatter(values, read(first, first + block.num_entries).to(values))
        first += block.num_entries


def scatter(blocks: Iterable[Block], flat: Tensor, values: Tensor) -> None:
    """Writes `values`, one after another, to the selected entries of `blocks` in `flat`."""
    begin = 0
    for block in blocks:
        block.scatter(flat, values[begin : begin + block.num_entries])
        begin += block.num_entries


def bits(tensor: Tensor) -> Tensor:
    """The same bits as integers: -0.0 is not 0.0, and NaN equals itself."""
    return tensor.detach().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def entry_masks(model: nn.Module, neurons: Tensor) -> dict[str, Mask]:
    """The trained entries of a language's subnetwork, per weight; weights without any are left out.

    Args:
        model: A causal language model of an architecture that `model/ffn.py` knows.
        neurons: integer [n, 2] of (layer, index).

    Raises:
        UserError: A neuron lies outside the model, or none is given.
    """
    layers = ffn_layers(model)
    check_neurons(layers, neurons)
    masks: dict[str, Mask] = {}
    for layer in layers:
        index = neurons[neurons[:, 0] == layer.index, 1].long().unique()
        if len(index):
            for part in layer.slices:
                earlier = masks.get(part.parameter_name)  # a fused gate_up_proj holds both
                masks[part.parameter_name] = _mask_of(layer, part, index, earlier)
    return masks


def check_neurons(layers: Sequence[FFNLayer], neurons: Tensor) -> None:
    """Makes sure that there are neurons, and that they are of this model.

    Args:
        layers: Of the model.
        neurons: integer [n, 2] of (layer, index).

    Raises:
        UserError: A neuron lies outside the model, or none is given.
    """
    if len(neurons) == 0:
        raise UserError(
            "the neuron set of this language is empty: nothing would train; identify with a larger top_rate"
        )
    sizes = {layer.index: layer.num_neurons for layer in layers}
    for layer_index, index in neurons.tolist():
        if not 0 <= index < sizes.get(layer_index, 0):
            raise UserError(
                f"neuron (layer {layer_index}, index {index}) is not in this model: it has {len(layers)} layers of "
                f"{layers[0].num_neurons} neurons; use a neuron set identified on this model"
            )


def _mask_of(layer: FFNLayer, part: WeightSlice, index: Tensor, earlier: Mask | None) -> Mask:
    """The mask of one weight of a layer, with what is already selected in it."""
    *stack, rows, cols = full_shape(part.parameter)
    expert, inside = index // layer.neurons_per_expert, index % layer.neurons_per_expert
    selected = expert * (rows, cols)[part.axis] + part.offset + inside
    if earlier is not None:
        selected = torch.cat([earlier.index, selected]).unique()
    if stack and part.axis == 1:
        return ExpertColumns(part.parameter_name, layer.num_experts, rows, cols, selected)
    return EntryMask(part.parameter_name, layer.num_experts * rows, cols, part.axis, selected)
