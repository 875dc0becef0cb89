"""Documents from local .txt, .jsonl and .parquet files, also compressed, also whole folders of them.

First room on the data's way. `reading.py` asks for the items of one file from a place on; an item is a
document or says what is wrong with a line, and never more than one document is held in memory.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import string
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from lape_ds.errors import NoText, UserError
from lape_ds.languages import Language
from lape_ds.recipe import FilesSource

_FORMATS = (".txt", ".jsonl", ".parquet")
_COMPRESSIONS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda file: pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"),
}
_BOM = b"\xef\xbb\xbf"
# What the standard library and Arrow raise on a truncated or damaged file (OSError: gzip, bz2, zstd).
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowInvalid)
_PARQUET_ROWS = 256
_IDENTITY_BYTES = 65_536


@dataclass(frozen=True)
class Item:
    """A document, or what is wrong in its place.

    Attributes:
        text: The document; None where there is none.
        problem: One line: file, line and what is wrong; None where all is well.
        offset: Where reading goes on after it: bytes of the decompressed file, rows of a parquet file.
        line: Lines (rows) of this file read so far.
    """

    text: str | None
    problem: str | None
    offset: int
    line: int


def fill_placeholders(text: str, language: Language, *, key: str) -> str:
    """Replaces `{…}` by the language's names, e.g. `data/{iso639_3}` -> `data/mlt`.

    Raises:
        UserError: An unknown placeholder, or one that this language has no name for.
    """
    known = language.placeholders()
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise UserError(
            f"{key}: {text!r} is no valid template ({error}); a literal brace is {{{{ or }}}}"
        ) from None
    for field in fields:
        if field not in known:
            raise (NoText if hasattr(language, field) else UserError)(
                f"{key}: {text!r} asks for {{{field}}}, which {language.name} does not have; it has "
                f"{', '.join(sorted(known))}; name one, or give corpus.per_language.{language.code} a source"
            )
    return text.format_map(known)


def list_files(source: FilesSource, language: Language) -> list[Path]:
    """The source's files in a fixed order: one file, or all readable ones below a folder, sorted by path.

    Hidden files and folders and other endings are passed over in a folder.

    Raises:
        UserError: Nothing there, or nothing that can be read.
    """
    key = "corpus.source.path"
    root = Path(fill_placeholders(source.path, language, key=key)).expanduser()
    kind = UserError if root == Path(source.path).expanduser() else NoText  # a wrong path, or one language's
    allowed = f"{', '.join(_FORMATS)}, each also with {', '.join(_COMPRESSIONS)}"
    if root.is_dir():
        relative = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        visible = [name for name in relative if not any(part.startswith(".") for part in name.split("/"))]
        files = [root / name for name in visible if _format(root / name) is not None]
        if not files:
            raise kind(f"{key}: folder {root} holds no text of {language.code}, no file ending in {allowed}")
        return files
    if not root.exists():
        raise kind(
            f"{key}: no such file or folder: {root} (text of {language.code}); give the path of its text"
        )
    if _format(root) is None:
        raise UserError(f"{key}: {root.name} is of no known format; allowed: {allowed}; convert it")
    return [root]


def files_identity(files: list[Path]) -> list[list[Any]]:
    """What tells whether files changed: name, bytes, time of change and a hash of both ends of each.

    Raises:
        UserError: A file cannot be read.
    """
    rows: list[list[Any]] = []
    root = os.path.commonpath([path.parent for path in files])
    for path in files:
        try:
            with path.open("rb") as file:
                status = path.stat()
                ends = file.read(_IDENTITY_BYTES)
                file.seek(max(0, status.st_size - _IDENTITY_BYTES))
                ends += file.read(_IDENTITY_BYTES)
        except OSError as error:
            raise UserError(f"corpus.source.path: cannot read {path}: {error.strerror}") from None
        name = path.relative_to(root)
        digest = hashlib.blake2b(ends, digest_size=16).hexdigest()
        rows.append([name.as_posix(), status.st_size, status.st_mtime_ns, digest])
    return rows


def read_file(path: Path, source: FilesSource, *, offset: int = 0, line: int = 0) -> Iterator[Item]:
    """Items of one file, from `offset` and `line` of an earlier item on.

    A file that is damaged from some place on (truncated gzip) gives a last item with a problem.

    Raises:
        UserError: The file cannot be opened, or is parquet without the column.
    """
    if _format(path) == ".parquet":
        items = _rows(path, source, offset)
    elif _format(path) == ".jsonl":
        items = _json_lines(path, source, offset, line)
    elif source.document == "line":
        items = _text_lines(path, offset, line)
    elif source.document == "paragraph":
        items = _paragraphs(path, offset, line)
    else:
        items = _whole_file(path, offset)
    place = Item(None, None, offset, line)
    try:
        for item in items:
            place = item
            yield item
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        unit = "row" if _format(path) == ".parquet" else "line"
        problem = f"{path}: truncated or damaged after {unit} {place.line} ({reason}); fetch it again"
        yield Item(None, problem, place.offset, place.line)


def _format(path: Path) -> str | None:
    """`.txt`, `.jsonl` or `.parquet`, compressed or not; None for anything else."""
    name = path.name.lower()
    for compression in _COMPRESSIONS:
        name = name.removesuffix(compression)
    return next((ending for ending in _FORMATS if name.endswith(ending)), None)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed on the way."""
    with ExitStack() as stack:
        try:
            stream: Any = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise UserError(f"corpus.source.path: cannot open {path}: {error.strerror}") from None
        name = path.name.lower()
        wrap = next((wrap for ending, wrap in _COMPRESSIONS.items() if name.endswith(ending)), None)
        stream = stream if wrap is None else stack.enter_context(wrap(stream))
        yield stack.enter_context(cast(BinaryIO, io.BufferedReader(stream, 1 << 20)))


def _byte_lines(path: Path, offset: int, line: int) -> Iterator[tuple[bytes, int, int]]:
    """Lines without their break (LF or CRLF) and without a BOM; offset and number after each."""
    with _opened(path) as file:
        if file.seekable():  # all but zstd; gzip and its like decompress up to there
            file.seek(offset)
        else:
            for start in range(0, offset, 1 << 20):
                file.read(min(1 << 20, offset - start))
        for number, content in enumerate(file, start=line + 1):
            content_end = offset + len(content)
            if offset == 0:
                content = content.removeprefix(_BOM)
            offset = content_end
            yield content.removesuffix(b"\n").removesuffix(b"\r"), offset, number


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return f"{path} line {line}: its byte {error.start + 1} (0x{byte:02x}) is not UTF-8; convert the file"


def _text_lines(path: Path, offset: int, line: int) -> Iterator[Item]:
    for content, after, number in _byte_lines(path, offset, line):
        try:
            yield Item(content.decode(), None, after, number)
        except UnicodeDecodeError as error:
            yield Item(None, _not_utf8(path, number, error), after, number)


def _paragraphs(path: Path, offset: int, line: int) -> Iterator[Item]:
    """Blank lines end a paragraph. A bad line is left out of its paragraph."""
    lines: list[str] = []
    after, number = offset, line
    for content, after, number in _byte_lines(path, offset, line):
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            # The place stays before the paragraph: resuming there reads its good lines again.
            yield Item(None, _not_utf8(path, number, error), offset, line)
            continue
        if text.strip():
            lines.append(text)
        elif lines:
            offset, line = after, number
            yield Item("\n".join(lines), None, offset, line)
            lines = []
    if lines:
        yield Item("\n".join(lines), None, after, number)


def _whole_file(path: Path, offset: int) -> Iterator[Item]:
    if offset > 0:
        return
    with _opened(path) as file:
        content = file.read()
    num_lines = content.count(b"\n") + (not content.endswith(b"\n"))
    try:
        text = content.removeprefix(_BOM).decode().replace("\r\n", "\n")
        yield Item(text, None, max(1, len(content)), num_lines)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        start = error.object.rfind(b"\n", 0, error.start) + 1
        in_line = UnicodeDecodeError(
            error.encoding, error.object[start:], error.start - start, error.end - start, ""
        )
        yield Item(None, _not_utf8(path, line, in_line), max(1, len(content)), num_lines)


def _json_lines(path: Path, source: FilesSource, offset: int, line: int) -> Iterator[Item]:
    for content, after, number in _byte_lines(path, offset, line):
        if not content.strip():
            continue
        text, problem = None, None
        try:
            text, problem = _column(json.loads(content.decode()), source.column)
        except UnicodeDecodeError as error:
            yield Item(None, _not_utf8(path, number, error), after, number)
            continue
        except json.JSONDecodeError as error:
            problem = f"broken JSON: {error.msg} at character {error.colno}"
        except (ValueError, RecursionError) as error:  # a number of over 4300 digits; a thousand nested lists
            problem = f"unreadable JSON: {error}"
        yield Item(text, problem and f"{path} line {number}: {problem}", after, number)


def _column(value: Any, column: str) -> tuple[str | None, str | None]:
    """Text of a JSON value's column, or what is wrong with it."""
    if not isinstance(value, dict):
        return None, f"is not a JSON object but {type(value).__name__}"
    if column not in value:
        return None, f"has no column {column!r}; it has {', '.join(map(str, value)) or 'none'}"
    return text_of(value[column], column)


def text_of(value: Any, column: str) -> tuple[str | None, str | None]:
    """A cell's text, or what is wrong with it."""
    if not isinstance(value, str):
        return None, f"column {column!r} is not text but {type(value).__name__}"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return None, f"column {column!r} holds half a surrogate pair at character {error.start + 1}"
    return value, None


def _rows(path: Path, source: FilesSource, offset: int) -> Iterator[Item]:
    with ExitStack() as stack:
        if path.name.lower().endswith(".parquet"):
            file: Any = path
        else:  # parquet is read from its end, a compressed stream only from its beginning
            file = stack.enter_context(tempfile.TemporaryFile())
            with _opened(path) as packed:
                shutil.copyfileobj(packed, file, 1 << 20)
            file.seek(0)
        # The buffer keeps a row group from being read whole.
        table = stack.enter_context(pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False))
        _check_parquet_column(path, table.schema_arrow, source.column)
        row, groups = 0, []
        for group in range(table.num_row_groups):
            if row + table.metadata.row_group(group).num_rows <= offset and not groups:
                row += table.metadata.row_group(group).num_rows
            else:
                groups.append(group)
        for batch in table.iter_batches(_PARQUET_ROWS, row_groups=groups, columns=[source.column]):
            for value in batch.column(0).to_pylist():
                row += 1
                if row > offset:
                    text, problem = text_of(value, source.column)
                    yield Item(text, problem and f"{path} row {row}: {problem}", row, row)


def _check_parquet_column(path: Path, schema: pa.Schema, column: str) -> None:
    """Raises UserError unless the column is there and holds text."""
    if column not in schema.names:
        raise UserError(
            f"corpus.source.column: {path} has no column {column!r}; it has {', '.join(schema.names)}"
        )
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(
            f"corpus.source.column: column {column!r} of {path} is not text but {kind}; name a column of text"
        )
