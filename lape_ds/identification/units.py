"""Units of counting: a language's blocks cut into stretches, which do not depend on who counts them.

Between the packed corpora and the ranks. A unit is counted in the same batches by whichever rank, run or cluster does it, and its
counts are additive: so neither the number of ranks nor an interruption shows in the sum.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lape_ds.corpora.packing import PackedCorpus
from lape_ds.neurons.counts import CountedBlocks, CountSettings

_NUM_DOUBLINGS = 6  # a budget is cut at its half, quarter, … 64th


@dataclass(frozen=True, order=True)
class Unit:
    """Blocks `start` to `stop` - 1 of a language's text."""

    language: str
    start: int
    stop: int

    @property
    def num_blocks(self) -> int:
        """How many."""
        return self.stop - self.start


@dataclass(frozen=True)
class Text:
    """One language's text to its budget, and how it is counted."""

    corpus: PackedCorpus
    settings: CountSettings

    @property
    def language(self) -> str:
        """Its code."""
        return self.settings.language

    @property
    def num_blocks(self) -> int:
        """All of them; packing has cut the text at the budget."""
        return self.corpus.train.num_blocks(self.settings.context_length)

    def part(self, start: int, stop: int) -> CountedBlocks:
        """How counts name a stretch of it; only the last block is not full."""
        length, num_tokens = self.settings.context_length, self.corpus.train.num_tokens
        stretch = min(stop * length, num_tokens) - start * length
        return CountedBlocks(self.corpus.fingerprint, start, stop, stretch)

    def units(self, shard_tokens: int) -> list[Unit]:
        """All of it: cut at the doublings and, between two of them, after every `shard_tokens` tokens."""
        per_shard = max(1, shard_tokens // self.settings.context_length)
        ends = [0, *doublings(self.num_blocks)]
        return [
            Unit(self.language, start, min(start + per_shard, end))
            for begin, end in pairwise(ends)
            for start in range(begin, end, per_shard)
        ]


def doublings(num_blocks: int) -> list[int]:
    """Where the rounds of `stop_when: stable` end: a 64th of the blocks, rounded up, and each doubling to all; each once."""
    return sorted({_doubling(num_blocks, number) for number in range(_NUM_DOUBLINGS + 1)})


def _doubling(num_blocks: int, number: int) -> int:
    return -(-num_blocks // 2 ** (_NUM_DOUBLINGS - number))


@dataclass(frozen=True)
class Doubling:
    """A round of one language: the `number`-th doubling (0: a 64th of the budget) ends at block `end`."""

    number: int
    end: int


def next_doubling(num_blocks: int, counted: int) -> Doubling | None:
    """The first that ends behind the blocks that are counted; None if all are."""
    ends = [Doubling(number, _doubling(num_blocks, number)) for number in range(_NUM_DOUBLINGS + 1)]
    return next((doubling for doubling in ends if doubling.end > counted), None)


def left_of(units: Iterable[Unit], done: Sequence[CountedBlocks]) -> list[Unit]:
    """The units, or what is left of them, without what is done of this text."""
    left = list(units)
    for part in done:
        left = [
            piece
            for unit in left
            for piece in (
                Unit(unit.language, unit.start, min(unit.stop, max(unit.start, part.start))),
                Unit(unit.language, max(unit.start, min(unit.stop, part.stop)), unit.stop),
            )
            if piece.num_blocks > 0
        ]
    return left


def of_part(units: Sequence[Unit], part_of: tuple[int, int] | None) -> list[Unit]:
    """Of all units of one language, in order, those of a part (which, of how many).

    A language's first unit has a number by its code: small ones do not all fall to one part, and a further language moves none.
    """
    if part_of is None:
        return list(units)
    which, of = part_of
    numbered = enumerate(units, zlib.crc32(units[0].language.encode()) if units else 0)
    return [unit for number, unit in numbered if number % of == which]


def divide(units: Sequence[Unit], num_ranks: int) -> list[list[Unit]]:
    """Whole units for each rank, about equally many blocks, each rank's next to each other: of most languages one has all."""
    total = sum(unit.num_blocks for unit in units)
    shares: list[list[Unit]] = [[] for _ in range(num_ranks)]
    before = 0
    for unit in units:
        middle = before + unit.num_blocks / 2
        shares[min(num_ranks - 1, int(middle * num_ranks / total))].append(unit)
        before += unit.num_blocks
    return shares
