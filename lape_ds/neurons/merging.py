"""`lape-ds neurons merge`: one set of counts from those of several clusters, or of several parts of a corpus.

Between counting and selection. Counts are whole numbers of separate text, so that what is added here is what one process would
have counted.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lape_ds.errors import UserError
from lape_ds.neurons.counts import CountedBlocks, Counts
from lape_ds.neurons.selection import check_comparable
from lape_ds.writing import whole_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merged:
    """What was written of one language: from how many files, and how much text."""

    language: str
    num_files: int
    num_tokens: int


def merge_counts(inputs: Sequence[Path], output: Path) -> list[Merged]:
    """Adds up counts and writes the sums, all or none.

    Args:
        inputs: Files of one language, or folders of them (`<language>.safetensors`); a language that only some folders have is
            taken as it is there.
        output: A file, or a folder, as the inputs are; must not exist.

    Raises:
        UserError: They were counted differently (names the setting, both values and both files), share text, are the
            same, or are no counts; or `output` exists.
    """
    if len(inputs) < 2:
        raise UserError(
            "name two or more files of counts, or folders of them, and after them the one to write"
        )
    if output.exists():
        raise UserError(f"{output} exists; name a new {'folder' if output.is_dir() else 'file'} to write")
    file = next((path for path in inputs if not path.is_dir()), None)
    folder = next((path for path in inputs if path.is_dir()), None)
    if file is not None and folder is not None:
        raise UserError(
            f"{file} is a file and {folder} a folder; merge files with files, folders with folders"
        )
    if folder is None:
        merged = _merge_files(inputs)
        merged.save(output)
        return [Merged(merged.settings.language, len(inputs), int(merged.tokens.sum()))]
    with whole_folder(output, marker_files=()) as temporary:
        return _merge_folders(inputs, temporary)


def _merge_folders(inputs: Sequence[Path], output: Path) -> list[Merged]:
    by_name: dict[str, list[Path]] = {}
    for folder in inputs:
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise UserError(
                f"{folder} holds no counts: no <language>.safetensors, which `lape-ds identify` writes"
            )
        for path in paths:
            by_name.setdefault(path.name, []).append(path)
    done, first = [], None
    for name, paths in by_name.items():
        merged = _merge_files(paths)
        first = first or merged.settings
        try:
            check_comparable(first, merged.settings)
        except UserError as error:
            raise UserError(f"{paths[0]}: {error}") from error
        merged.save(output / name)
        done.append(Merged(merged.settings.language, len(paths), int(merged.tokens.sum())))
    return done


def _merge_files(paths: Sequence[Path]) -> Counts:
    merged = Counts.load(paths[0])
    seen = {_content(merged): paths[0]}
    for path in paths[1:]:
        other = Counts.load(path)
        try:
            merged = merged.merge(other)
        except UserError as error:
            raise UserError(f"{paths[0]} and {path}: {error}") from error
        twin = seen.setdefault(_content(other), path)
        if twin != path:
            raise UserError(
                f"{twin} and {path} hold the very same counts: one text, counted twice from copies of it; merge one of them only"
            )
    _tell_what_is_unsure(merged)
    return merged


def _content(counts: Counts) -> bytes:
    """Of counts of one text the same, under whatever corpus fingerprint: that of files changes when they are copied."""
    digest = hashlib.sha256(counts.tokens.numpy().tobytes())
    digest.update(counts.active.numpy().tobytes())
    return digest.digest()


def _tell_what_is_unsure(counts: Counts) -> None:
    """Gaps, and text of which only the user knows that it is not the same; parts may still be added, clusters have other text."""
    language, by_corpus = counts.settings.language, defaultdict[str, list[CountedBlocks]](list)
    for part in counts.parts:
        by_corpus[part.corpus_fingerprint].append(part)
    if len(by_corpus) > 1:
        logger.warning(
            "%s is counted of %d corpora (%s): text that is in several counts several times. They are several where "
            "files were copied without their time of change (keep it: rsync -t, cp -p) or a hub dataset's commit differs",
            language,
            len(by_corpus),
            ", ".join(fingerprint[:16] for fingerprint in by_corpus),
        )
    for fingerprint, parts in by_corpus.items():
        ends = [0, *(part.stop for part in parts)]
        gaps = [f"{end}–{part.start}" for end, part in zip(ends, parts, strict=False) if end < part.start]
        if gaps:
            logger.warning(
                "%s lacks blocks %s of corpus %s: a part is missing, or parts had unlike identify.shard_tokens; "
                "`lape-ds identify RECIPE` counts what is missing",
                language,
                ", ".join(gaps),
                fingerprint[:16],
            )
