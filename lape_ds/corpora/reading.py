"""Documents of one language from any source, one after the other, with the place to go on from after each.

First room on the data's way: `packing.py` reads a source to a token budget, stops, and goes on later from the
`ReaderState` that came with the last document; the tokenizer's training reads a few thousand documents.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import babel

from lape_ds.corpora.cldr import CLDR_VERSION, sample_records
from lape_ds.corpora.files import files_identity, fill_placeholders, list_files, read_file
from lape_ds.corpora.hub import hub_identity, read_hub
from lape_ds.corpora.romanising import romanise
from lape_ds.errors import NoText, UserError
from lape_ds.languages import Language
from lape_ds.recipe import CLDRSource, FilesSource, HubSource, Source

logger = logging.getLogger(__name__)

OnBadLine = Literal["stop", "skip"]


@dataclass(frozen=True)
class ReaderState:
    """The place after a document; `dataclasses.asdict` of it is JSON, `ReaderState(**…)` brings it back.

    Attributes:
        documents: Documents given so far.
        skipped: Bad lines skipped so far (`on_bad_line: skip`).
        file: Index of the current file among the sorted files.
        offset: Bytes (rows of parquet) read of the decompressed file; the next record's number of CLDR.
        line: Lines read of that file.
        stream: State of a hub stream.
    """

    documents: int = 0
    skipped: int = 0
    file: int = 0
    offset: int = 0
    line: int = 0
    stream: dict[str, Any] | None = None


def read_documents(
    source: Source, language: Language, *, on_bad_line: OnBadLine, position: ReaderState | None = None
) -> Generator[tuple[str, ReaderState], None, ReaderState]:
    """Reads a language's documents in the source's fixed order; blank ones are none.

    Args:
        source: The recipe's source of this language.
        language: Whose names fill the placeholders.
        on_bad_line: `stop` raises at the first line that gives no document (broken JSON, a missing or
            non-text column, not UTF-8, a truncated file); `skip` counts it, warns of the first and goes on.
        position: Where to go on; the beginning if None.

    Yields:
        A document and the place after it. The generator returns the place at the source's end.

    Raises:
        UserError: A bad line under `stop`; or what cannot be skipped: no such file, no document in it at all,
            no such column of parquet, a hub that cannot be reached.
    """
    state = position or ReaderState()
    for text, problem, after in _items(source, language, state):
        if problem is not None:
            if on_bad_line == "stop":
                raise UserError(f"{problem}; mend it, or set corpus.on_bad_line=skip to leave such lines out")
            if state.skipped == 0:
                logger.warning("%s: skipped (on_bad_line: skip); further ones are counted", problem)
            state = replace(state, skipped=state.skipped + 1)
        elif text is not None and text.strip():
            state = replace(after, documents=state.documents + 1, skipped=state.skipped)
            yield romanise(text, language) if source.romanise else text, state
    if state.documents == 0:
        bad = f" ({state.skipped} bad lines skipped)" if state.skipped else ""
        raise NoText(
            f"corpus.source: {_describe(source, language)} is empty: no text of {language.code} in it{bad}; "
            "give it some, or name another source"
        )
    return state


def source_identity(source: Source, language: Language) -> dict[str, Any]:
    """What a source's documents depend on: equal identities give the same documents. Plain JSON.

    Files count by name, size, time of change and a hash of their ends, wherever they lie; hub data by commit.

    Raises:
        HubUnreachable: The hub cannot be asked for the commit.
        UserError: The source is not there.
    """
    settings = source.model_dump(exclude={"path"} | unset(source))
    if isinstance(source, FilesSource):
        return {"source": settings, "files": files_identity(list_files(source, language))}
    if isinstance(source, HubSource):
        return {"source": settings, "commits": hub_identity(source, language)}
    return {"source": settings, "babel": babel.__version__, "records_version": CLDR_VERSION}


def unset(source: Source) -> set[str]:
    """Settings that identities leave out where they change nothing: text packed before there was such a setting stays good."""
    return set() if source.romanise else {"romanise"}


def _items(
    source: Source, language: Language, position: ReaderState
) -> Iterator[tuple[str | None, str | None, ReaderState]]:
    """Text or problem, and the place after it; of the place's counts only what the source knows."""
    if isinstance(source, FilesSource):
        for index, path in enumerate(list_files(source, language)):
            if index < position.file:
                continue
            here = (position.offset, position.line) if index == position.file else (0, 0)
            for item in read_file(path, source, offset=here[0], line=here[1]):
                yield item.text, item.problem, ReaderState(file=index, offset=item.offset, line=item.line)
    elif isinstance(source, HubSource):
        for item in read_hub(source, language, position.stream):
            yield item.text, item.problem, ReaderState(stream=item.stream)
    else:
        first = position.offset
        for record in sample_records(language, count=source.records - first, seed=source.seed, first=first):
            yield record.text, None, ReaderState(offset=record.id + 1)


def _describe(source: FilesSource | HubSource | CLDRSource, language: Language) -> str:
    if isinstance(source, FilesSource):
        return fill_placeholders(source.path, language, key="corpus.source.path")
    return source.dataset if isinstance(source, HubSource) else "CLDR"
