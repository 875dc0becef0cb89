"""The counts of an identification on disk: a file for each language, and beside them what is not in there yet.

Between the units, as ranks count them, and the selection. `counts/<language>.safetensors` grows by whole files of
`units/<language>/`, which go when they are in it. What is done is read from what the files say they hold, so that a kill at any
moment, also between the two, leaves nothing to be counted or added twice.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lape_ds.errors import UserError
from lape_ds.identification.sections import holds_counts
from lape_ds.identification.units import Text, Unit
from lape_ds.neurons.counts import CountedBlocks, Counts, CountsHeader, coalesced
from lape_ds.writing import write_json

logger = logging.getLogger(__name__)

Written = tuple[str, int]  # a file's name in the folder, and how many tokens are counted in it
_SECONDS_TO_SEE = 90.0  # NFS asks for a folder anew after 30 to 60 s (acdirmin, acdirmax)


@dataclass(frozen=True)
class Done:
    """What is counted of a text.

    Attributes:
        in_file: Stretches that the language's file holds.
        waiting: Files of units that are not in it.
        in_waiting: The stretches that these hold.
        with_sums: Whether sums of activations are counted: where they are asked for, or the file has them already.
    """

    in_file: tuple[CountedBlocks, ...]
    waiting: tuple[Path, ...]
    in_waiting: tuple[CountedBlocks, ...]
    with_sums: bool

    @property
    def parts(self) -> tuple[CountedBlocks, ...]:
        """All stretches."""
        return coalesced(self.in_file + self.in_waiting)

    @property
    def num_blocks_in_file(self) -> int:
        """How far the file reaches without a gap."""
        first = coalesced(self.in_file)[:1]
        return first[0].stop if first and first[0].start == 0 else 0


class CountFiles:
    """The counts in a folder."""

    def __init__(self, folder: Path, *, with_sums: bool) -> None:
        """Looks at nothing yet.

        Args:
            folder: Of the identification, or of a part of it.
            with_sums: Whether sums of activations are needed.
        """
        self.folder, self._with_sums = folder, with_sums
        self._round = (
            folder / ".round.json"
        )  # hidden: alone it is no output that binds the folder to a recipe

    def of_language(self, language: str) -> Path:
        """The language's file."""
        return self.folder / "counts" / f"{language}.safetensors"

    def of_unit(self, unit: Unit) -> Path:
        """Where a unit's counts wait."""
        return self.folder / "units" / unit.language / f"{unit.start}-{unit.stop}.safetensors"

    def holds_counts(self) -> bool:
        """Whether anything is counted, of whatever recipe."""
        return holds_counts(self.folder)

    def check(self, text: Text) -> CountsHeader | None:
        """What the language's file says it holds; None if there is none. Writes nothing.

        Raises:
            UserError: It was counted of other text or in another way, or cannot be read. It is not ours to overwrite.
        """
        path = self.of_language(text.language)
        header = CountsHeader.read(path) if path.exists() else None
        if header is not None and (misfit := _misfit(header, text)) is not None:
            raise UserError(
                f"{path} holds counts that this recipe does not give: {misfit}; set another output_dir, or delete the file to "
                f"count {text.language} anew"
            )
        return header

    def done(self, text: Text) -> Done:
        """What is counted; only for whom nobody else writes there, for it clears away what a killed run has left.

        What waits and was counted of other text or in another way goes; a language's file of that kind is refused.

        Raises:
            UserError: As `check`.
        """
        header = self.check(text)
        if header is None or (self._with_sums and not header.has_sums):
            in_file, with_sums = (), self._with_sums
        else:
            in_file, with_sums = header.parts, header.has_sums
        waiting: list[Path] = []
        parts: list[CountedBlocks] = []
        # The longest first: a file that grew by a unit takes the place of one that is in it.
        for path, header in sorted(self._waiting(text), key=lambda found: -found[1].parts[0].num_tokens):
            if (
                _misfit(header, text) is not None
                or header.has_sums != with_sums
                or _covered(header, [*in_file, *parts])
            ):
                path.unlink(missing_ok=True)
            else:
                waiting.append(path)
                parts += header.parts
        return Done(in_file, tuple(waiting), tuple(parts), with_sums)

    def _waiting(self, text: Text) -> list[tuple[Path, CountsHeader]]:
        found: list[tuple[Path, CountsHeader]] = []
        for path in (self.folder / "units" / text.language).glob("*.safetensors"):
            try:
                found.append((path, CountsHeader.read(path)))
            except FileNotFoundError:  # as below
                continue
            except UserError as error:  # counted again at the cost of a unit; only what is in counts/ is the user's to delete
                if not path.exists():  # another host has merged it, and its folder's listing was an older one
                    continue
                logger.warning("%s; the unit is counted again", error)
                path.unlink(missing_ok=True)
        return found

    def merge(self, text: Text) -> None:
        """Adds what waits to the language's file; no other process may do that, or count this language, meanwhile.

        Raises:
            UserError: A file is damaged.
        """
        done = self.done(text)
        if not done.waiting:
            return
        path = self.of_language(text.language)
        several = [*([path] if done.in_file else []), *done.waiting]
        counts = Counts.load(several[0])
        for other in several[1:]:
            counts = counts.merge(Counts.load(other))
        counts.save(path)
        for waiting in done.waiting:  # killed before this, the next `done` finds them covered
            waiting.unlink()

    def written(self, path: Path) -> Written:
        """What a rank that has written a file tells the first one of it."""
        return str(path.relative_to(self.folder)), _num_tokens(path)

    def see(self, written: Sequence[Written], host: str) -> None:
        """Waits until what a rank on this host has written is seen here: network file systems show it up to a minute later.

        Raises:
            UserError: It is not seen; or what is seen is damaged.
        """
        until = time.monotonic() + _SECONDS_TO_SEE
        for name, num_tokens in written:
            path = self.folder / name
            while not path.exists() or _num_tokens(path) < num_tokens:  # or what was there before
                if time.monotonic() >= until:
                    raise UserError(
                        f"{path}, which {host} has written, is not seen by rank 0 after {_SECONDS_TO_SEE:g} s; is the file "
                        "system that holds output_dir in order? what is counted is kept, the same command goes on"
                    )
                time.sleep(0.1)

    def clear(self) -> None:
        """Takes away what nobody needs: half-written files of killed processes, emptied folders."""
        for pattern in ("counts/.*.tmp", "units/*/.*.tmp", ".*round.json*.tmp", ".rank-*-*"):
            for path in self.folder.glob(pattern):
                path.unlink()
        units = self.folder / "units"
        for folder in [*units.glob("*/"), units]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def begin_round(self, ends: Mapping[str, int]) -> None:
        """Notes how far each language of a round is counted: a killed run ends it before it asks which are stable."""
        write_json(self._round, dict(ends))

    def begun_round(self) -> dict[str, int]:
        """By language, the block where the round ends that has begun; empty if none has."""
        return json.loads(self._round.read_text("utf-8")) if self._round.exists() else {}

    def end_round(self) -> None:
        """The round's counts are in the languages' files."""
        self._round.unlink(missing_ok=True)


def _misfit(header: CountsHeader, text: Text) -> str | None:
    """In what a file differs from counts of this text as they are counted now; None if it does not.

    The name of the model may differ: one model may lie in two folders. Its fingerprint tells.
    """
    ours, theirs = asdict(text.settings), asdict(header.settings)
    for name in ours:
        if name != "model_id" and ours[name] != theirs[name]:
            return f"{name} is {ours[name]} now, {theirs[name]} there"
    for part in header.parts:
        if part.corpus_fingerprint != text.corpus.fingerprint:
            return (
                f"the text (corpus) is {text.corpus.fingerprint[:16]} now, {part.corpus_fingerprint[:16]} there: other "
                "documents, or the same from other files or another commit"
            )
        if part.stop > text.num_blocks or part != text.part(part.start, part.stop):
            return f"identify.tokens_per_language gives {text.num_blocks} blocks now, blocks {part.start}–{part.stop} are there"
    return None


def _num_tokens(path: Path) -> int:
    return sum(part.num_tokens for part in CountsHeader.read(path).parts)


def _covered(header: CountsHeader, parts: list[CountedBlocks]) -> bool:
    there = coalesced(parts)
    return all(
        any(one.start <= part.start and part.stop <= one.stop for one in there) for part in header.parts
    )
