"""Documents to packed tokens on disk: once per source and tokenizer, to a token budget, resumable.

Between reading and every later room. The corpus of a language lies in `<cache>/<language>/<fingerprint>/`:

- `train.tokens.bin`, `heldout.tokens.bin`: ids, two or four bytes each; documents one after the other
- `*.documents.bin`: a `DOCUMENT` each; `*.lines.bin`: hashes of their lines (see `splitting.py`)
- `state.json`: how far these files are valid, and where to go on; `corpus.json`: what the fingerprint is of

Files only grow. A larger budget appends, a smaller one reads a prefix: the corpus at a budget is the same
whether or not more was packed before. Documents are read in the source's order; a budget takes the first
ones.

An interruption at any moment costs what was packed since the last `state.json`: what lies beyond it is cut
off, and reading goes on from there. One process packs, others wait for its lock; a corpus with enough is
read without.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from lape_ds.corpora.hub import HubUnreachable
from lape_ds.corpora.reading import OnBadLine, ReaderState, read_documents, source_identity, unset
from lape_ds.corpora.splitting import LINE, TextKeys, mostly_repeated, text_keys
from lape_ds.corpora.streams import DOCUMENT, Block, Document, TokenStream
from lape_ds.corpora.tokenizing import TokenLayout, flatten, token_layout, tokenize, tokenizer_fingerprint
from lape_ds.errors import UserError
from lape_ds.languages import Language
from lape_ds.recipe import Source, TokenBudget
from lape_ds.runlog import Progress
from lape_ds.writing import whole_file, write_json

__all__ = ["Block", "Document", "PackedCorpus", "TokenStream", "pack"]

logger = logging.getLogger(__name__)

# Changes whenever the same text would be packed into other bytes.
SCHEMA_VERSION = 1
STATE_EVERY_SECONDS = 2.0
_BATCH_DOCUMENTS = 1000
_BATCH_CHARACTERS = 1_000_000
_SECONDS_BETWEEN_ATTEMPTS = 0.1
_ATTEMPTS_BEFORE_TELLING = 20  # the ranks of one training often wait a moment for each other
_SPLITS = ("train", "heldout")
_PARTS = ("tokens", "documents", "lines")
_UINT64 = np.dtype("<u8")


@dataclass(frozen=True)
class PackedCorpus:
    """One language's text at a token budget.

    Attributes:
        language: Canonical code.
        fingerprint: Hex hash of source, tokenizer and split, not of the budget (see `train.num_tokens`).
        train: Documents to the budget: the one that reaches it is whole, so up to a document more.
        heldout: The held-out documents read up to there, each text once, none mostly repeated in `train`; may be
            empty where nobody needs them.
        num_skipped_lines: Bad lines skipped in all that was read of the source so far.
    """

    language: str
    fingerprint: str
    train: TokenStream
    heldout: TokenStream
    num_skipped_lines: int


@dataclass(frozen=True)
class _State:
    """What `state.json` holds: the bytes of each file that are valid, and where reading goes on.

    Never changed, only replaced by that after a further batch: at any moment it is of whole batches.
    """

    reader: ReaderState = field(default_factory=ReaderState)
    sizes: dict[str, int] = field(
        default_factory=lambda: {f"{split}.{part}": 0 for split in _SPLITS for part in _PARTS}
    )
    train_tokens: int = 0
    exhausted: bool = False  # the source has no more

    def reaches(self, budget: TokenBudget) -> bool:
        return self.exhausted or (budget != "all" and self.train_tokens >= budget)


def pack(
    language: Language,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    train_tokens: TokenBudget,
    heldout_share: float,
    on_bad_line: OnBadLine,
    budget_key: str = "train.tokens",
    or_all: bool = False,
    need_heldout: bool = True,
    tokenizer_hash: str | None = None,
) -> PackedCorpus:
    """Packs a language's text until the training split has the budget, or reuses what is packed.

    Safe to call from several processes at once. A hub data set whose commit cannot be asked for (offline)
    counts as unchanged since it was last packed here.

    Args:
        language: Of the text.
        source: Where the text is.
        tokenizer: Any Hugging Face tokenizer; a stream holds `[BOS] ids [EOS]` per document, of those it has.
        folder: The cache of all corpora.
        train_tokens: Tokens wanted of the training split, or `all`.
        heldout_share: Share of the distinct texts that is held out.
        on_bad_line: `stop` or `skip`.
        budget_key: The recipe's key of `train_tokens`, for messages.
        or_all: A source with less than the budget is taken whole, not refused.
        need_heldout: False: a held-out split without any document is given empty, not refused.
        tokenizer_hash: `tokenizer_fingerprint(tokenizer)` where the caller has it already.

    Raises:
        UserError: A fault of the source (see `read_documents`); fewer tokens than asked for; a split without
            any document; a damaged cache.
    """
    layout = token_layout(tokenizer)
    settings = {
        "schema_version": SCHEMA_VERSION,
        "language": language.code,
        "tokenizer": tokenizer_hash or tokenizer_fingerprint(tokenizer),
        "heldout_share": heldout_share,
        "on_bad_line": on_bad_line,
        **_identity(source, language, folder / language.code),
    }
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
    home = folder / language.code / fingerprint
    state = _load_state(home)
    if not state.reaches(train_tokens):
        with _locked(home):
            state = _load_state(home)
            if not state.reaches(train_tokens):
                write_json(home / "corpus.json", settings)
                documents = read_documents(source, language, on_bad_line=on_bad_line, position=state.reader)
                with _Writer(home, state, tokenizer, layout, heldout_share) as writer:
                    _pack_documents(documents, writer, train_tokens, language)
                state = writer.state
    if state.reader.skipped:
        logger.warning("%s: %d bad lines skipped in all", language.code, state.reader.skipped)
    budget = "all" if or_all and state.exhausted and not _holds(state, train_tokens) else train_tokens
    return _view(home, state, layout, language, fingerprint, budget, budget_key, need_heldout)


def _holds(state: _State, budget: TokenBudget) -> bool:
    return budget == "all" or state.train_tokens >= budget


def _identity(source: Source, language: Language, folder: Path) -> dict[str, Any]:
    """The source's identity; the last one known where the hub cannot be asked."""
    if source.kind != "hub":
        return source_identity(source, language)
    known_file = folder / "hub.json"
    known = json.loads(known_file.read_text("utf-8")) if known_file.exists() else {}
    name = source.model_dump_json(exclude=unset(source))
    try:
        identity = source_identity(source, language)
    except HubUnreachable as error:
        if name not in known:
            raise
        logger.warning("%s; taking it as last seen here", error)
        return known[name]
    if known.get(name) != identity:
        write_json(known_file, {**known, name: identity})
    return identity


def _pack_documents(
    documents: Generator[tuple[str, ReaderState], None, ReaderState],
    writer: _Writer,
    budget: TokenBudget,
    language: Language,
) -> None:
    """Reads, tokenises and writes batches until the budget is reached or the source ends."""
    total = None if budget == "all" else budget
    done = writer.state.train_tokens
    with Progress(f"Packing {language.code}", total=total, unit="tokens", done=done) as bar:
        for texts, position, exhausted in _batches(documents):
            writer.add(texts, position, exhausted=exhausted)
            done = writer.state.train_tokens
            # The last batch may pack more than was asked for.
            bar.advance(min(done, total or done) - bar.done)
            if writer.state.reaches(budget):
                return


def _batches(
    documents: Generator[tuple[str, ReaderState], None, ReaderState],
) -> Iterator[tuple[list[str], ReaderState, bool]]:
    """Texts of a batch, the place after it and whether the source ends there."""
    texts: list[str] = []
    num_characters = 0
    while True:
        try:
            text, position = next(documents)
        except StopIteration as end:
            yield texts, end.value, True
            return
        texts.append(text)
        num_characters += len(text)
        if len(texts) == _BATCH_DOCUMENTS or num_characters >= _BATCH_CHARACTERS:
            yield texts, position, False
            texts, num_characters = [], 0


class _Writer:
    """Appends batches to a corpus's files, and says in `state.json` how far they are valid."""

    def __init__(
        self,
        home: Path,
        state: _State,
        tokenizer: PreTrainedTokenizerBase,
        layout: TokenLayout,
        heldout_share: float,
    ) -> None:
        self.state = state
        self._home, self._tokenizer, self._layout, self._share = home, tokenizer, layout, heldout_share

    def __enter__(self) -> _Writer:
        self._files = {
            name: _cut(self._home / f"{name}.bin", size) for name, size in self.state.sizes.items()
        }
        known = _map(self._home, "heldout.documents", DOCUMENT, self.state)["hash"]
        # Grows with the held-out texts only: the one thing here that is not flat.
        self._heldout_texts: set[int] = set(known.tolist())
        self._saved = time.monotonic()
        return self

    def __exit__(self, *exception: object) -> None:
        # Also after an error or Ctrl-C, wherever: `state` is of the batches before it, what lies beyond is cut off later.
        try:
            self._save()
        finally:
            for file in self._files.values():
                file.close()

    def add(self, texts: list[str], position: ReaderState, *, exhausted: bool) -> None:
        """Packs a batch whose documents end at `position`."""
        first_ordinal = position.documents - len(texts)
        chosen: dict[str, list[tuple[int, str, list[int], TextKeys]]] = {split: [] for split in _SPLITS}
        for number, (text, ids) in enumerate(zip(texts, tokenize(self._tokenizer, texts), strict=True)):
            keys = text_keys(text)
            heldout = keys.is_heldout(self._share)
            if not ids or (heldout and keys.document in self._heldout_texts):
                continue
            if heldout:
                self._heldout_texts.add(keys.document)
            chosen["heldout" if heldout else "train"].append((first_ordinal + number, text, ids, keys))
        sizes = self.state.sizes
        for split, documents in chosen.items():
            sizes = sizes | self._append(split, documents)
        train_tokens = sizes["train.tokens"] // np.dtype(self._layout.dtype).itemsize
        self.state = _State(position, sizes, train_tokens, exhausted)
        if time.monotonic() - self._saved >= STATE_EVERY_SECONDS:
            self._save()

    def _append(self, split: str, documents: list[tuple[int, str, list[int], TextKeys]]) -> dict[str, int]:
        """Writes a batch's documents of one split; returns the sizes of its files with them."""
        sizes = self.state.sizes
        tokens = flatten([ids for _, _, ids, _ in documents], self._layout)
        frame = len(self._layout.before) + len(self._layout.after)
        line_type = _line_type(split)
        rows = np.zeros(len(documents), DOCUMENT)
        rows["end"] = np.cumsum([len(ids) + frame for _, _, ids, _ in documents])
        rows["end"] += sizes[f"{split}.tokens"] // tokens.itemsize
        rows["num_bytes"] = [len(text.encode()) for _, text, _, _ in documents]
        rows["hash"] = np.array([keys.document for *_, keys in documents], np.uint64)
        rows["ordinal"] = [ordinal for ordinal, *_ in documents]
        rows["lines_end"] = np.cumsum([len(keys.lines) for *_, keys in documents])
        rows["lines_end"] += sizes[f"{split}.lines"] // line_type.itemsize
        hashes = np.array([line for *_, keys in documents for line in keys.lines], np.uint64)
        lines = hashes.astype(_UINT64)
        if line_type == LINE:
            lines = np.zeros(len(hashes), LINE)
            lines["hash"] = hashes
            lines["num_bytes"] = [size for *_, keys in documents for size in keys.line_bytes]
        arrays = {f"{split}.{part}": array for part, array in zip(_PARTS, (tokens, rows, lines), strict=True)}
        for name, array in arrays.items():
            self._files[name].write(array.tobytes())
        return {name: sizes[name] + array.nbytes for name, array in arrays.items()}

    def _save(self) -> None:
        """Data first, then the state that calls it valid."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        write_json(self._home / "state.json", asdict(self.state))
        self._saved = time.monotonic()


def _line_type(split: str) -> np.dtype[Any]:
    return LINE if split == "heldout" else _UINT64


def _load_state(home: Path) -> _State:
    path = home / "state.json"
    if not path.exists():
        return _State()
    content = json.loads(path.read_text("utf-8"))
    return _State(**{**content, "reader": ReaderState(**content["reader"])})


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Keeps other processes from packing the same corpus; the lock ends with the process, however it ends."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        for attempt in count():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == _ATTEMPTS_BEFORE_TELLING:
                    logger.warning("another process packs %s; waiting for it", home)
                time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
        yield


def _cut(path: Path, size: int) -> BinaryIO:
    """Opens a file for appending behind its first `size` bytes."""
    file = path.open("r+b" if path.exists() else "w+b")
    if path.stat().st_size < size:
        raise _damaged(path)
    file.truncate(size)
    file.seek(size)
    return file


def _map(home: Path, name: str, dtype: np.dtype[Any], state: _State) -> npt.NDArray[Any]:
    """The valid part of a file, memory-mapped."""
    path, count = home / f"{name}.bin", state.sizes[name] // dtype.itemsize
    if count == 0:
        return np.empty(0, dtype)
    if not path.exists() or path.stat().st_size < state.sizes[name]:
        raise _damaged(path)
    return np.asarray(np.memmap(path, dtype, "r", shape=(count,)))


def _damaged(path: Path) -> UserError:
    return UserError(f"packed text is damaged: {path} is shorter than state.json says; delete {path.parent}")


def _view(
    home: Path,
    state: _State,
    layout: TokenLayout,
    language: Language,
    fingerprint: str,
    budget: TokenBudget,
    budget_key: str,
    need_heldout: bool,
) -> PackedCorpus:
    """What packing to exactly this budget would have given."""
    train = _map(home, "train.documents", DOCUMENT, state)
    heldout = _map(home, "heldout.documents", DOCUMENT, state)
    if budget != "all":
        if state.train_tokens < budget:
            raise UserError(
                f"{budget_key}: {budget:,} tokens asked of {language.code}, but its source holds only "
                f"{state.train_tokens:,} for training; set {budget_key}=all to take all there is"
            )
        train = train[: bisect_left(train["end"], budget) + 1]
        heldout = heldout[: bisect_right(heldout["ordinal"], train["ordinal"][-1])]
    rows = np.flatnonzero(~_repeated(home, state, train, heldout))
    if len(train) == 0 or (need_heldout and len(rows) == 0):
        repeated = len(heldout) - len(rows)
        needed = "each split needs one" if need_heldout else "training needs one"
        more = "give more text" if budget == "all" else f"give more text or raise {budget_key}"
        raise UserError(
            f"corpus.heldout_share: {len(train)} documents of {language.code} for training, {len(heldout)} "
            f"held out ({repeated} of these mostly repeat training text): {needed}; change that share, {more}"
        )
    tokens = {split: _map(home, f"{split}.tokens", np.dtype(layout.dtype), state) for split in _SPLITS}
    return PackedCorpus(
        language=language.code,
        fingerprint=fingerprint,
        train=TokenStream(tokens["train"], train, layout=layout),
        heldout=TokenStream(tokens["heldout"], heldout, layout=layout, rows=rows),
        num_skipped_lines=state.reader.skipped,
    )


def _repeated(
    home: Path, state: _State, train: npt.NDArray[np.void], heldout: npt.NDArray[np.void]
) -> npt.NDArray[np.bool_]:
    """Bool [heldout]: what `mostly_repeated` says; computed once per budget, then kept beside the tokens."""
    kept = home / f"repeated-{len(train)}-{len(heldout)}.npy"
    if kept.exists():
        return np.load(kept, allow_pickle=False)
    train_lines = _map(home, "train.lines", _UINT64, state)[: train["lines_end"][-1] if len(train) else 0]
    heldout_lines = _map(home, "heldout.lines", LINE, state)[
        : heldout["lines_end"][-1] if len(heldout) else 0
    ]
    repeated = mostly_repeated(heldout_lines, heldout["lines_end"], train_lines)
    if os.access(home, os.W_OK):  # a cache shared read-only is computed each time
        with whole_file(kept) as temporary, temporary.open("wb") as file:
            np.save(file, repeated)
    return repeated
