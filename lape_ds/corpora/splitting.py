"""Which text is held out: decided by what a document says, so that repeated text never crosses the split.

Between reading and packing. A document's split and bucket are a hash of its normalised text (NFKC, case
folded, white space collapsed): the same text lands on the same side whatever the order, the file or the
number of repeats.

A document of several lines may repeat lines of another document. `mostly_repeated` finds, after packing, the
held-out documents more than half of which (in bytes) stands line by line in the training text; they are not
used. So a repeated line does not disqualify a held-out document by itself: the limit is one half, and repeats
inside a line are not seen.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

# Documents fall into buckets by hash, so that a bootstrap can resample documents from counts alone.
NUM_BUCKETS = 16
_CHUNK_LINES = 1 << 20

# A line of a held-out document; of training documents only the hash is kept.
LINE = np.dtype([("hash", "<u8"), ("num_bytes", "<u4")])


@dataclass(frozen=True)
class TextKeys:
    """What a text is recognised by.

    Attributes:
        document: 64-bit hash of the normalised text; decides split and bucket.
        lines: 64-bit hash of each normalised line that is not blank.
        line_bytes: UTF-8 bytes of each.
    """

    document: int
    lines: list[int]
    line_bytes: list[int]

    def is_heldout(self, share: float) -> bool:
        """Whether the text belongs to the held-out `share`; decided by the hash's upper bits."""
        return self.document < share * 2.0**64


def text_keys(text: str) -> TextKeys:
    """Hashes a text and its lines, normalised. A text of one line has its own hash as its line's."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    lines = [" ".join(line.split()).encode() for line in folded.splitlines()]
    lines = [line for line in lines if line]
    return TextKeys(_hash(b" ".join(lines)), [_hash(line) for line in lines], [len(line) for line in lines])


def bucket_of(document_hash: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Bucket 0 to 15 of documents, by the hash's lower bits: independent of the split."""
    return (document_hash % NUM_BUCKETS).astype(np.uint8)


def mostly_repeated(
    heldout_lines: npt.NDArray[np.void],
    line_ends: npt.NDArray[np.uint64],
    train_lines: npt.NDArray[np.uint64],
) -> npt.NDArray[np.bool_]:
    """Which held-out documents stand for more than half (bytes of lines) in the training text.

    Memory is that of the held-out lines; the training lines are read through once, a million at a time.

    Args:
        heldout_lines: `LINE` [lines] of all held-out documents, one after the other.
        line_ends: uint64 [documents], where each document's lines end.
        train_lines: uint64 [lines] of all training documents; may be memory-mapped.

    Returns:
        bool [documents].
    """
    known = np.unique(heldout_lines["hash"])
    if len(known) == 0:
        return np.zeros(len(line_ends), bool)
    found = np.zeros(len(known), bool)
    for start in range(0, len(train_lines), _CHUNK_LINES):
        chunk = np.unique(train_lines[start : start + _CHUNK_LINES])
        place = np.minimum(np.searchsorted(known, chunk), len(known) - 1)
        found[place[known[place] == chunk]] = True
    num_bytes = heldout_lines["num_bytes"].astype(np.int64)
    repeated = num_bytes * found[np.searchsorted(known, heldout_lines["hash"])]
    ends = line_ends.astype(np.int64)
    sums = [
        np.diff(np.concatenate([[0], np.cumsum(values)])[np.concatenate([[0], ends])])
        for values in (repeated, num_bytes)
    ]
    return 2 * sums[0] > sums[1]


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
