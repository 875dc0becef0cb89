"""Which blocks a training step sees: several languages mixed by weight, with a share of replay.

Between packed corpora and the training loop. Everything is a function of the seed and the number of a
sample, and a step's samples are numbered `step * global_batch_size` on: there is no state to save, a resumed
run needs the step alone, and any number of ranks sees the same global batch.

Samples go through periods of 16,384. In each a language has exactly its share (to half a sample), spread
evenly by a golden-ratio sequence, so that any stretch of samples has its share to within a few. A language's
own samples go through all its blocks in a shuffled order, then through all of them in another, for as long
as training lasts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from lape_ds.corpora.streams import NOT_SCORED, TokenStream

_PERIOD = 1 << 14
_GOLDEN = (5**0.5 - 1) / 2
_ROUNDS = 6
_MASK64 = (1 << 64) - 1


class TrainingBlocks:
    """The samples of a training run.

    Attributes:
        languages: Trained ones, then replayed ones.
        shares: Of all samples, language by language; they sum to 1.
        num_blocks: Samples of one epoch: as many samples of trained languages as these have blocks, and the
            replay that goes with them. With weights unlike the languages' sizes, some blocks of the one come
            twice and some of the other wait for the next epoch.
    """

    def __init__(
        self,
        mixture: Mapping[str, tuple[TokenStream, float]],
        *,
        block_length: int,
        seed: int,
        replay: Mapping[str, tuple[TokenStream, float]] | None = None,
        replay_share: float = 0.0,
    ) -> None:
        """Mixes languages.

        Args:
            mixture: Per trained language its tokens and relative weight (> 0).
            block_length: Tokens per block.
            seed: Of order and mixture.
            replay: Per replayed language its tokens and relative weight.
            replay_share: Of all samples, the part that is replay.

        Raises:
            ValueError: A language is both trained and replayed, or a share of replay is asked of no language.
        """
        replay = replay or {}
        if overlap := set(mixture) & set(replay):
            raise ValueError(f"{', '.join(sorted(overlap))} both trained and replayed")
        if bool(replay) != (replay_share > 0):
            raise ValueError(f"a replay share of {replay_share} with {len(replay)} languages to replay")
        self.block_length, self._seed = block_length, seed
        self._streams = {code: stream for part in (mixture, replay) for code, (stream, _) in part.items()}
        self.languages = tuple(self._streams)
        self._replayed = frozenset(replay)
        self.shares: dict[str, float] = {}
        for part, share in ((mixture, 1 - replay_share), (replay, replay_share)):
            total = sum(weight for _, weight in part.values())
            self.shares |= {code: share * weight / total for code, (_, weight) in part.items()}
        self._num_blocks = [stream.num_blocks(block_length) for stream in self._streams.values()]
        num_trained = sum(self._num_blocks[: len(mixture)])
        self.num_blocks = max(1, round(num_trained / (1 - replay_share)))
        self._slots, self._earlier, self._counts = _schedule(list(self.shares.values()), seed)

    def batch(self, step: int, *, global_batch_size: int) -> list[tuple[str, int]]:
        """Language and block of each sample of a step, of all ranks together; step 0 is the first."""
        first = step * global_batch_size
        return [self._sample(number) for number in range(first, first + global_batch_size)]

    def collate(self, samples: Sequence[tuple[str, int]]) -> dict[str, torch.Tensor]:
        """Stacks blocks: `input_ids` and `targets` int64, `attention_mask` bool, each [B, T]; `is_replay` bool [B].

        A position's target is the token after it, -100 where that is not scored and at a block's last position.
        """
        blocks = [self._streams[code].block(index, self.block_length) for code, index in samples]
        batch = {
            name: torch.stack([getattr(block, name) for block in blocks])
            for name in ("input_ids", "attention_mask")
        }
        labels = torch.stack([block.labels for block in blocks])
        batch["targets"] = functional.pad(labels[:, 1:], (0, 1), value=NOT_SCORED)
        batch["is_replay"] = torch.tensor([code in self._replayed for code, _ in samples], dtype=torch.bool)
        return batch

    def _sample(self, number: int) -> tuple[str, int]:
        period, slot = divmod(number, _PERIOD)
        place = int(self._slots[slot])
        nth = period * int(self._counts[place]) + int(self._earlier[slot])
        code, num_blocks = self.languages[place], self._num_blocks[place]
        epoch, position = divmod(nth, num_blocks)
        return code, permuted(position, num_blocks, key=f"{self._seed}/{code}/{epoch}")


def _schedule(
    shares: Sequence[float], seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """One period: each slot's language, how many slots of that language go before, slots of each language."""
    exact = np.array(shares) * _PERIOD
    counts = np.floor(exact).astype(np.int64)
    # Largest remainders first; and no language is left out, however small its share.
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: _PERIOD - counts.sum()]] += 1
    for empty in np.flatnonzero(counts == 0):
        counts[counts.argmax()] -= 1
        counts[empty] = 1
    shift = (seed * _GOLDEN) % 1
    spread = (np.arange(_PERIOD) * _GOLDEN + shift) % 1
    slots = np.empty(_PERIOD, np.int64)
    slots[np.argsort(spread, kind="stable")] = np.repeat(np.arange(len(shares)), counts)
    earlier = np.empty(_PERIOD, np.int64)
    for place in range(len(shares)):
        mine = np.flatnonzero(slots == place)
        earlier[mine] = np.arange(len(mine))
    return slots, earlier, counts


def permuted(position: int, size: int, *, key: str) -> int:
    """Where `position` goes in a permutation of `range(size)`: nothing is kept in memory, whatever the size.

    A Feistel network permutes the next power of four; what falls outside `range(size)` goes through it
    again, less than four times on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = _round_keys(key)
    while True:
        left, right = position >> half, position & mask
        for round_key in keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & mask)
        position = left << half | right
        if position < size:
            return position


@lru_cache(maxsize=4096)
def _round_keys(key: str) -> tuple[int, ...]:
    digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * k : 8 * k + 8], "little") for k in range(_ROUNDS))


def _mixed(value: int) -> int:
    """SplitMix64's finaliser. Source: Steele, Lea and Flood, OOPSLA 2014."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    return value ^ value >> 31
