"""Documents from files and data sets: what is read, what is refused and where reading goes on."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lape_ds.corpora.files import list_files
from lape_ds.corpora.reading import OnBadLine, ReaderState, read_documents, source_identity
from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.recipe import CLDRSource, FilesSource, HubSource, Source

MALTESE = find_language("mt")
TEXTS = ["Il-Ħamis", "Jannar, Frar", "tliet kelmiet hawn", "Ġunju"]


def files(path, **settings):
    return FilesSource(kind="files", path=str(path), **settings)


def read(source: Source, on_bad_line: OnBadLine = "stop", position: ReaderState | None = None) -> list[str]:
    return [text for text, _ in read_documents(source, MALTESE, on_bad_line=on_bad_line, position=position)]


def json_lines(texts, column="text"):
    return "".join(json.dumps({column: text, "n": 1}) + "\n" for text in texts).encode()


COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def write_format(path, ending):
    """The four texts in one of the three formats, as bytes."""
    if ending == ".parquet":
        table = pa.table({"text": TEXTS, "n": [1, 2, 3, 4]})
        pq.write_table(table, path / "plain", row_group_size=3)
        content = (path / "plain").read_bytes()
        (path / "plain").unlink()
        return content
    return "\n".join(TEXTS).encode() if ending == ".txt" else json_lines(TEXTS)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".parquet"])
def test_every_format_and_every_place_to_go_on_from(tmp_path, ending, compression):
    path = tmp_path / f"text{ending}{compression}"
    path.write_bytes(COMPRESS[compression](write_format(tmp_path, ending)))
    source = files(path)
    given = list(read_documents(source, MALTESE, on_bad_line="stop"))
    assert [text for text, _ in given] == TEXTS
    for number, (_, state) in enumerate(given, start=1):
        stored = ReaderState(**json.loads(json.dumps(asdict(state))))
        assert stored.documents == number
        assert read(source, position=stored) == TEXTS[number:]


def test_folder_is_read_sorted_and_deep(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b" / "1.txt").write_text("third\n")
    (tmp_path / "a10.jsonl").write_bytes(json_lines(["first"]))
    (tmp_path / "a2.TXT.GZ").write_bytes(gzip.compress(b"second\n"))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "README.md").write_text("not text of the corpus")
    (tmp_path / ".hidden" / "x.txt").write_text("hidden")
    source = files(tmp_path)
    given = list(read_documents(source, MALTESE, on_bad_line="stop"))
    assert [text for text, _ in given] == ["first", "second", "third"]
    for number, (_, state) in enumerate(given, start=1):
        assert read(source, position=state) == ["first", "second", "third"][number:]


def test_what_a_document_is(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n  \r\n three \r\n\r\n")
    assert read(files(path)) == ["one", "two", " three "]
    assert read(files(path, document="paragraph")) == ["one\ntwo", " three "]
    assert read(files(path, document="file")) == ["one\ntwo\n\n  \n three \n\n"]
    for document in ("line", "paragraph", "file"):
        given = list(read_documents(files(path, document=document), MALTESE, on_bad_line="stop"))
        for number, (_, state) in enumerate(given, start=1):
            assert read(files(path, document=document), position=state) == [t for t, _ in given][number:]


def test_placeholders(tmp_path):
    (tmp_path / "mlt").mkdir()
    (tmp_path / "mlt" / "mt.txt").write_text("Jannar\n")
    assert read(files(tmp_path / "{iso639_3}" / "{iso639_1}.txt")) == ["Jannar"]
    with pytest.raises(UserError, match=r"\{iso639\}, which Maltese does not have; it has .*iso639_1"):
        read(files(tmp_path / "{iso639}"))
    with pytest.raises(UserError, match="is no valid template"):
        read(files(tmp_path / "{iso639_3"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "one"}\n{"text": \n{"text": "three"}\n', "a.jsonl line 2: broken JSON"),
        (
            "a.jsonl",
            b'{"text": "one"}\n{"n": 2}\n{"text": "three"}\n',
            "line 2: has no column 'text'; it has n",
        ),
        (
            "a.jsonl",
            b'{"text": "one"}\n{"text": 2}\n{"text": "three"}\n',
            "line 2: column 'text' is not text but int",
        ),
        (
            "a.jsonl",
            b'{"text": "one"}\n["two"]\n{"text": "three"}\n',
            "line 2: is not a JSON object but list",
        ),
        (
            "a.jsonl",
            b'{"text": "one"}\n{"text": "\\ud800"}\n{"text": "three"}\n',
            "line 2: .* half a surrogate pair",
        ),
        (
            "a.jsonl",
            b'{"text": "one"}\n{"text": ' + b"9" * 5000 + b'}\n{"text": "three"}\n',
            "line 2: unreadable JSON",
        ),
        (
            "a.jsonl",
            b'{"text": "one"}\n' + b"[" * 90_000 + b'\n{"text": "three"}\n',
            "line 2: unreadable JSON",
        ),
        (
            "a.jsonl",
            b'{"text": "one"}\n{"text": "\xff"}\n{"text": "three"}\n',
            r"line 2: its byte 11 \(0xff\) is not UTF-8",
        ),
        ("a.txt", b"one\ntw\xe9o\nthree\n", r"a.txt line 2: its byte 3 \(0xe9\) is not UTF-8"),
        ("a.txt.gz", gzip.compress(b"one\n\xff\nthree\n", mtime=0), "line 2: its byte 1"),
    ],
)
def test_bad_lines_stop_by_number_or_are_skipped_and_counted(tmp_path, name, content, said, caplog):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as refusal:
        read(files(path))
    assert "\n" not in str(refusal.value)
    assert "on_bad_line=skip" in str(refusal.value)
    given = list(read_documents(files(path), MALTESE, on_bad_line="skip"))
    assert [text for text, _ in given] == ["one", "three"]
    assert given[-1][1].skipped == 1
    assert "skipped" in caplog.text


@pytest.mark.parametrize("document", ["paragraph", "file"])
def test_bad_bytes_in_larger_documents(tmp_path, document):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\ntwo\n\xff\nthree\n\nfour\n")
    with pytest.raises(UserError, match=r"line 4: its byte 1 \(0xff\)"):
        read(files(path, document=document))
    (tmp_path / "b.txt").write_bytes(b"five\n")
    expected = {"paragraph": ["one", "two\nthree", "four", "five"], "file": ["five\n"]}
    given = list(read_documents(files(tmp_path, document=document), MALTESE, on_bad_line="skip"))
    assert [text for text, _ in given] == expected[document]
    assert given[-1][1].skipped == 1
    for number, (_, state) in enumerate(given, start=1):
        assert read(files(tmp_path, document=document), "skip", state) == expected[document][number:]


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
def test_truncated_file(tmp_path, compression):
    # Distinct lines: a compressor would fold equal ones into a few bytes.
    lines = [f"line {number * 2654435761 % 2**32:x}" for number in range(60_000)]
    whole = COMPRESS[compression]("\n".join(lines).encode())
    (tmp_path / f"a.txt{compression}").write_bytes(whole[: len(whole) * 3 // 4])
    (tmp_path / "b.txt").write_text("after\n")
    with pytest.raises(UserError, match=rf"a.txt{compression}: truncated or damaged after line \d+"):
        read(files(tmp_path))
    given = list(read_documents(files(tmp_path), MALTESE, on_bad_line="skip"))
    texts = [text for text, _ in given]
    assert texts[-1] == "after"
    assert given[-1][1].skipped == 1
    assert texts[:-1] == lines[: len(texts) - 1]


def test_parquet_that_cannot_be_used(tmp_path):
    pq.write_table(pa.table({"n": [1], "other": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"corpus.source.column: .*no column 'text'; it has n, other"):
        read(files(tmp_path / "a.parquet"), "skip")
    with pytest.raises(UserError, match=r"'n' of .* is not text but int64"):
        read(files(tmp_path / "a.parquet", column="n"))
    pq.write_table(pa.table({"text": ["one", None, "three"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="row 2: column 'text' is not text but NoneType"):
        read(files(tmp_path / "b.parquet"))
    assert read(files(tmp_path / "b.parquet"), "skip") == ["one", "three"]
    (tmp_path / "c.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(UserError, match=r"c\.parquet: truncated or damaged"):
        read(files(tmp_path / "c.parquet"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf"])
def test_no_text_at_all(tmp_path, name, content):
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UserError, match=r"is empty: no text of mlt_Latn"):
        read(files(tmp_path / name))


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.source\.path: no such file or folder: .*nowhere"):
        read(files(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"holds no text of mlt_Latn"):
        read(files(tmp_path))
    (tmp_path / "a.docx").write_text("x")
    with pytest.raises(UserError, match=r"a\.docx is of no known format; allowed: \.txt, \.jsonl, \.parquet"):
        read(files(tmp_path / "a.docx"))


def test_only_bad_lines_are_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text("{\n[\n")
    with pytest.raises(UserError, match=r"is empty.*2 bad lines skipped"):
        read(files(tmp_path), "skip")


def test_cldr_goes_on():
    source = CLDRSource(kind="cldr", records=50, seed=3)
    given = list(read_documents(source, MALTESE, on_bad_line="stop"))
    assert len(given) == 50
    assert read(source, position=given[29][1]) == [text for text, _ in given[30:]]


def test_identity_changes_with_what_decides_the_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    first = source_identity(files(path), MALTESE)
    assert source_identity(files(path), MALTESE) == first
    assert source_identity(files(path, document="file"), MALTESE) != first
    status = path.stat()
    path.write_text("two\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time: told by the content
    assert source_identity(files(path), MALTESE) != first
    assert list_files(files(path), MALTESE) == [path]
    cldr = source_identity(CLDRSource(kind="cldr"), MALTESE)
    assert source_identity(CLDRSource(kind="cldr", seed=1), MALTESE) != cldr
    json.dumps([first, cldr])


def hub(dataset, **settings):
    return HubSource(kind="hub", dataset=str(dataset), **settings)


@pytest.fixture
def dataset_folder(tmp_path):
    """A local folder in the hub's layout: two parquet shards of three rows."""
    for shard in range(2):
        table = pa.table({"text": [f"shard {shard} row {row}" for row in range(3)]})
        pq.write_table(table, tmp_path / f"train-{shard}.parquet")
    return tmp_path


def test_hub_data_set_is_streamed_and_goes_on(dataset_folder):
    given = list(read_documents(hub(dataset_folder), MALTESE, on_bad_line="stop"))
    expected = [f"shard {shard} row {row}" for shard in range(2) for row in range(3)]
    assert [text for text, _ in given] == expected
    for number, (_, state) in enumerate(given, start=1):
        stored = ReaderState(**json.loads(json.dumps(asdict(state))))
        if number < len(expected):
            assert read(hub(dataset_folder), position=stored) == expected[number:]
    identity = source_identity(hub(dataset_folder), MALTESE)
    assert json.loads(json.dumps(identity)) == identity


def test_hub_faults_say_what_to_do(dataset_folder):
    with pytest.raises(UserError, match=r"corpus\.source\.column: .* no column 'content'; it has text"):
        read(hub(dataset_folder, column="content"))
    with pytest.raises(UserError, match=r"corpus\.source\.split: .* no split 'test'; it has train"):
        source_identity(hub(dataset_folder, split="test"), MALTESE)
    with pytest.raises(UserError, match=r"\(mlt-Latn\) has no such config: no text of mlt_Latn"):
        read(hub(dataset_folder, config="{glotcc}"))
    with pytest.raises(UserError, match=r"no data set .*nowhere"):
        read(hub(dataset_folder / "nowhere"))


def test_offline_hub_is_one_line(monkeypatch):
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"cannot reach hub data set some/data .*HF_HUB_OFFLINE.*give local files"
    ) as refusal:
        read(hub("some/data"))
    assert "\n" not in str(refusal.value)
