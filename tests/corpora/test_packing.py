"""Packing against naive packing, and through everything that can go wrong on the way."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from lape_ds.corpora import packing
from lape_ds.corpora.hub import HubUnreachable
from lape_ds.corpora.packing import PackedCorpus, pack
from lape_ds.corpora.reading import OnBadLine, read_documents
from lape_ds.corpora.splitting import text_keys
from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.recipe import CLDRSource, FilesSource, HubSource, Source, TokenBudget
from tests.conftest import byte_tokenizer

MALTESE = find_language("mt")
SHARE = 0.1
WORDS = "Jannar Frar Marzu April Mejju Ġunju Lulju Awwissu Settembru Ottubru Novembru Diċembru".split()


def make_texts(count, seed=0):
    """Distinct lines of two to twenty words."""
    draw = random.Random(seed)
    return [f"{' '.join(draw.choices(WORDS, k=draw.randint(1, 19)))} {number}" for number in range(count)]


def write_lines(path, texts):
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return FilesSource(kind="files", path=str(path))


def pack_it(
    source: Source,
    folder: Path,
    budget: TokenBudget = "all",
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    share: float = SHARE,
    on_bad_line: OnBadLine = "stop",
    budget_key: str = "train.tokens",
) -> PackedCorpus:
    return pack(
        MALTESE,
        source,
        tokenizer or byte_tokenizer(),
        folder,
        train_tokens=budget,
        heldout_share=share,
        on_bad_line=on_bad_line,
        budget_key=budget_key,
    )


def texts_of(stream, tokenizer=None):
    tokenizer = tokenizer or byte_tokenizer()
    return [tokenizer.decode(document.token_ids) for document in stream.documents()]


def normal(text):
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def naive(texts, budget):
    """What training and held-out split hold: documents one by one until the budget, held-out texts once."""
    train, heldout, num_tokens, seen = [], [], 0, set()
    for text in texts:
        if budget != "all" and num_tokens >= budget:
            break
        if text_keys(text).document / 2**64 >= SHARE:
            train.append(text)
            num_tokens += len(text.encode()) + 2
        elif normal(text) not in seen:
            seen.add(normal(text))
            heldout.append(text)
    return train, heldout


@pytest.mark.parametrize("budget", [1, 1000, 5003, "all"])
@pytest.mark.parametrize("batch", [1, 17, 400, 1000])  # 400: the source ends with a batch
def test_packing_against_naive_packing(tmp_path, budget, batch, monkeypatch):
    monkeypatch.setattr(packing, "_BATCH_DOCUMENTS", batch)
    texts = make_texts(300)
    texts += [text.upper() for text in texts[::3]]
    source = write_lines(tmp_path / "a.txt", texts)
    corpus = pack_it(source, tmp_path / "cache", budget)
    train, heldout = naive(texts, budget)
    assert texts_of(corpus.train) == train
    assert texts_of(corpus.heldout) == heldout
    assert corpus.train.num_tokens == sum(len(text.encode()) + 2 for text in train)
    assert corpus.heldout.num_bytes == sum(len(text.encode()) for text in heldout)
    buckets = {
        int(b) for i in range(corpus.train.num_blocks(64)) for b in corpus.train.block(i, 64).token_bucket
    }
    assert buckets <= set(range(16))


@pytest.mark.parametrize("kind", [{"bos": False}, {"eos": False}, {"bos": False, "eos": False, "pad": False}])
def test_tokenizers_without_special_tokens(tmp_path, kind):
    texts = make_texts(200)
    tokenizer = byte_tokenizer(**kind)
    corpus = pack_it(write_lines(tmp_path / "a.txt", texts), tmp_path / "cache", tokenizer=tokenizer)
    train, _ = naive(texts, "all")
    assert texts_of(corpus.train, tokenizer) == train
    frame = kind.get("bos", True) + kind.get("eos", True)
    assert corpus.train.num_tokens == sum(len(text.encode()) + frame for text in train)


def test_a_budget_is_the_same_whatever_was_packed_before(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_BATCH_DOCUMENTS", 13)
    source = write_lines(tmp_path / "a.txt", make_texts(400))
    budgets = [900, 4000, 2000, "all", 900]
    grown = [pack_it(source, tmp_path / "grown", budget) for budget in budgets]
    for place, budget in enumerate(budgets):
        fresh = pack_it(source, tmp_path / f"fresh{place}", budget)
        assert fresh.fingerprint == grown[place].fingerprint
        assert texts_of(fresh.train) == texts_of(grown[place].train)
        assert texts_of(fresh.heldout) == texts_of(grown[place].heldout)
    whole, half = texts_of(grown[3].train), texts_of(grown[2].train)
    assert half == whole[: len(half)]


def test_packed_text_is_not_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_BATCH_DOCUMENTS", 10)
    source = write_lines(tmp_path / "a.txt", make_texts(200))
    first = pack_it(source, tmp_path / "cache", 2000)

    def refuse(*arguments, **settings):
        raise AssertionError("read again")

    monkeypatch.setattr(packing, "read_documents", refuse)
    assert 1500 <= pack_it(source, tmp_path / "cache", 1500).train.num_tokens < first.train.num_tokens
    assert texts_of(pack_it(source, tmp_path / "cache", 2000).train) == texts_of(first.train)
    with pytest.raises(AssertionError, match="read again"):
        pack_it(source, tmp_path / "cache", "all")


def test_what_changes_the_fingerprint(tmp_path):
    texts = make_texts(200)
    source = write_lines(tmp_path / "a.txt", texts)
    first = pack_it(source, tmp_path / "cache")
    assert pack_it(source, tmp_path / "cache", 500).fingerprint == first.fingerprint
    others = [
        pack_it(source, tmp_path / "cache", share=0.2),
        pack_it(source, tmp_path / "cache", tokenizer=byte_tokenizer(bos=False)),
        pack_it(source, tmp_path / "cache", on_bad_line="skip"),
        pack_it(CLDRSource(kind="cldr", records=200), tmp_path / "cache"),
    ]
    before = texts_of(first.train)
    changed = pack_it(write_lines(tmp_path / "a.txt", [*texts, "one more"]), tmp_path / "cache")
    assert len({corpus.fingerprint for corpus in (first, changed, *others)}) == 6
    assert texts_of(first.train) == before  # packed text of the old file is left as it was
    assert "one more" in texts_of(changed.train) + texts_of(changed.heldout)


def test_repeated_text_never_crosses_the_split(tmp_path):
    """Whatever the order, the case and the spacing; and a held-out text counts once."""
    texts = make_texts(150)
    repeats = [text.upper().replace(" ", "  ") for text in texts]
    mixed = random.Random(1).sample([*texts, *texts, *repeats], 450)
    corpus = pack_it(write_lines(tmp_path / "a.txt", mixed), tmp_path / "cache", share=0.3)
    train = [normal(text) for text in texts_of(corpus.train)]
    heldout = [normal(text) for text in texts_of(corpus.heldout)]
    assert not set(train) & set(heldout)
    assert len(heldout) == len(set(heldout)) > 10
    assert len(train) == 3 * len(set(train))
    other = pack_it(write_lines(tmp_path / "b.txt", sorted(mixed)), tmp_path / "cache", share=0.3)
    assert {normal(text) for text in texts_of(other.heldout)} == set(heldout)


def test_heldout_documents_made_of_training_lines_are_left_out(tmp_path):
    lines = make_texts(600)
    documents = ["\n".join(lines[start : start + 3]) for start in range(0, 600, 3)]
    heldout = next(text for text in documents if text_keys(text).document / 2**64 < SHARE)
    first, second, third = heldout.split("\n")
    # A training document with the same lines and one more; it stands on the other side of the split.
    copies = (f"{first}\n{second}\n{third}\nand {number}" for number in range(100))
    copy = next(text for text in copies if text_keys(text).document / 2**64 >= SHARE)
    path = tmp_path / "a.jsonl"
    source = FilesSource(kind="files", path=str(path))

    def pack_documents(texts):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return texts_of(pack_it(source, tmp_path / "cache").heldout)

    assert heldout in pack_documents(documents)
    assert heldout not in pack_documents([*documents, copy])
    assert heldout not in pack_documents([copy, *documents])
    assert pack_documents([copy, *documents]) == [t for t in pack_documents(documents) if t != heldout]


def test_budget_larger_than_the_corpus(tmp_path):
    texts = make_texts(200)
    source = write_lines(tmp_path / "a.txt", texts)
    num_tokens = sum(len(text.encode()) + 2 for text in naive(texts, "all")[0])
    said = (
        rf"identify\.tokens_per_language: 1,000,000 tokens asked of mlt_Latn, but its source holds "
        rf"only {num_tokens:,}"
        r".*set identify\.tokens_per_language=all"
    )
    for _ in range(2):  # packed and not packed
        with pytest.raises(UserError, match=said) as refusal:
            pack_it(source, tmp_path / "cache", 1_000_000, budget_key="identify.tokens_per_language")
        assert "\n" not in str(refusal.value)
    assert pack_it(source, tmp_path / "cache", num_tokens).train.num_tokens == num_tokens
    assert pack_it(source, tmp_path / "cache").train.num_tokens == num_tokens


def test_too_few_documents_for_two_splits(tmp_path):
    text = next(text for text in make_texts(50) if text_keys(text).document / 2**64 < SHARE)
    with pytest.raises(
        UserError, match=r"corpus\.heldout_share: 0 documents of mlt_Latn for training, 1 held out"
    ):
        pack_it(write_lines(tmp_path / "a.txt", [text, text]), tmp_path / "cache")


def test_held_out_text_that_nobody_needs(tmp_path):
    """A language that is only replayed is given with an empty held-out split; still refused where it is measured."""
    texts = [text for text in make_texts(60) if text_keys(text).document / 2**64 >= SHARE]
    source = write_lines(tmp_path / "a.txt", texts)

    def pack_replayed(need_heldout):
        return pack(
            MALTESE,
            source,
            byte_tokenizer(),
            tmp_path / "cache",
            train_tokens=10**6,
            heldout_share=SHARE,
            on_bad_line="stop",
            budget_key="train.replay.share",
            or_all=True,
            need_heldout=need_heldout,
        )

    corpus = pack_replayed(False)
    assert texts_of(corpus.train) == texts
    assert (corpus.heldout.num_documents, corpus.heldout.num_tokens, corpus.heldout.num_bytes) == (0, 0, 0)
    assert (list(corpus.heldout.documents()), corpus.heldout.num_blocks(8)) == ([], 0)
    with pytest.raises(
        UserError, match=rf"{len(texts)} documents of mlt_Latn for training, 0 held out.*give more text$"
    ):
        pack_replayed(True)
    with pytest.raises(UserError, match=r"each split needs one.*or raise identify\.tokens_per_language"):
        pack_it(source, tmp_path / "cache", 10, budget_key="identify.tokens_per_language")


def test_bad_line_stops_and_mended_text_starts_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    good = "".join(json.dumps({"text": text}) + "\n" for text in make_texts(100))
    source = FilesSource(kind="files", path=str(path))
    path.write_text(good + "{broken\n" + good.replace("Frar", "frar"))
    with pytest.raises(UserError, match=r"a\.jsonl line 101: broken JSON"):
        pack_it(source, tmp_path / "cache")
    skipped = pack_it(source, tmp_path / "cache", on_bad_line="skip")
    assert skipped.num_skipped_lines == 1
    path.write_text(good)
    assert pack_it(source, tmp_path / "cache").num_skipped_lines == 0


def test_bad_line_at_the_very_end_is_counted(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in make_texts(100)) + "{broken\n")
    source = FilesSource(kind="files", path=str(path))
    assert pack_it(source, tmp_path / "cache", on_bad_line="skip").num_skipped_lines == 1
    assert "mlt_Latn: 1 bad lines skipped in all" in caplog.text


def test_damaged_cache_is_said(tmp_path):
    source = write_lines(tmp_path / "a.txt", make_texts(100))
    pack_it(source, tmp_path / "cache", 500)
    (file,) = (tmp_path / "cache").rglob("train.tokens.bin")
    file.write_bytes(file.read_bytes()[:100])
    for budget in (500, "all"):
        with pytest.raises(UserError, match=r"packed text is damaged: .*train\.tokens\.bin.*delete"):
            pack_it(source, tmp_path / "cache", budget)


def test_offline_hub_counts_as_unchanged(tmp_path, monkeypatch, caplog):
    """The second time the hub does not answer; what it said the first time is remembered."""
    source = HubSource(kind="hub", dataset="some/data")
    texts = write_lines(tmp_path / "a.txt", make_texts(100))
    monkeypatch.setattr(
        packing, "read_documents", lambda _, *rest, **settings: read_documents(texts, *rest, **settings)
    )
    monkeypatch.setattr(packing, "source_identity", lambda source, language: {"commits": ["abc"]})
    first = pack_it(source, tmp_path / "cache")

    def unreachable(source, language):
        raise HubUnreachable("cannot reach hub data set some/data")

    monkeypatch.setattr(packing, "source_identity", unreachable)
    assert pack_it(source, tmp_path / "cache").fingerprint == first.fingerprint
    assert "taking it as last seen here" in caplog.text
    with pytest.raises(HubUnreachable):
        pack_it(source, tmp_path / "elsewhere")


def test_very_long_document(tmp_path):
    long = " ".join(f"{word}{number}" for number, word in enumerate(WORDS * 4_000))
    texts = [*make_texts(50), long]
    corpus = pack_it(write_lines(tmp_path / "a.txt", texts), tmp_path / "cache")
    assert [len(text) for text in texts_of(corpus.train)] == [len(text) for text in naive(texts, "all")[0]]
    assert corpus.train.num_bytes == sum(len(text.encode()) for text in naive(texts, "all")[0])


def run_worker(text, cache, budget, seconds=0.0):
    root = Path(__file__).parents[2]
    command = [
        sys.executable,
        "-m",
        "tests.corpora.packing_worker",
        str(text),
        str(cache),
        str(budget),
        str(seconds),
    ]
    return subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(worker):
    output, errors = worker.communicate(timeout=120)
    assert worker.returncode == 0, errors
    return [int(number) for number in output.split()], errors


def packed_files(cache):
    (home,) = (path.parent for path in cache.rglob("state.json"))
    return {path.name: path.read_bytes() for path in sorted(home.glob("*.bin"))}


def test_killed_at_any_moment_loses_and_repeats_nothing(tmp_path):
    texts = make_texts(10_000)
    source = write_lines(tmp_path / "a.txt", texts)
    pack_it(source, tmp_path / "whole")
    cache = tmp_path / "killed"
    kills = 0
    for delay in (0.0, 0.07, 0.2):
        worker = run_worker(tmp_path / "a.txt", cache, "all", seconds=0.15)
        while not list(cache.rglob("*.tokens.bin")) and worker.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        if worker.poll() is None:
            worker.kill()
            kills += 1
        worker.communicate()
    assert kills >= 2
    # A write that was cut in the middle: bytes beyond what state.json calls valid.
    for path in cache.rglob("*.bin"):
        with path.open("ab") as file:
            file.write(b"half a docum")
    corpus = pack_it(source, cache)
    assert packed_files(cache) == packed_files(tmp_path / "whole")
    train, heldout = naive(texts, "all")
    assert texts_of(corpus.train) == train
    assert texts_of(corpus.heldout) == heldout


class FileThatFails:
    """A file of the corpus that stops its process at one of its writes, after half of the bytes or all of them."""

    def __init__(self, file, countdown, whole):
        self.file, self.countdown, self.whole = file, countdown, whole

    def write(self, data):
        self.countdown[0] -= 1
        if self.countdown[0] < 0:
            self.file.write(data if self.whole else data[: len(data) // 2])
            raise KeyboardInterrupt
        self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("write", range(12))  # six files, of the first batch and of the second
def test_interrupted_at_any_write_loses_and_repeats_nothing(tmp_path, monkeypatch, write, whole):
    """Ctrl-C is an exception, wherever it comes: the batch it falls into is packed again, whole."""
    monkeypatch.setattr(packing, "_BATCH_DOCUMENTS", 100)
    texts = make_texts(300)
    source = write_lines(tmp_path / "a.txt", texts)
    pack_it(source, tmp_path / "whole")
    cut, countdown = packing._cut, [write]
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_cut", lambda *given: FileThatFails(cut(*given), countdown, whole))
        with pytest.raises(KeyboardInterrupt):
            pack_it(source, tmp_path / "stopped")
    # The first batch is kept, if the second was interrupted.
    (state,) = (tmp_path / "stopped").rglob("state.json")
    assert json.loads(state.read_text())["reader"]["documents"] == 100 * (write // 6)
    corpus = pack_it(source, tmp_path / "stopped")
    assert packed_files(tmp_path / "stopped") == packed_files(tmp_path / "whole")
    assert (texts_of(corpus.train), texts_of(corpus.heldout)) == naive(texts, "all")


@pytest.mark.parametrize("step", ["tokenize", "flatten", "_line_type", "write_json"])
@pytest.mark.parametrize("call", range(1, 4))
def test_interrupted_between_writes_loses_and_repeats_nothing(tmp_path, monkeypatch, step, call):
    monkeypatch.setattr(packing, "_BATCH_DOCUMENTS", 100)
    monkeypatch.setattr(packing, "STATE_EVERY_SECONDS", 0.0)
    texts = make_texts(300)
    source = write_lines(tmp_path / "a.txt", texts)
    real, calls = getattr(packing, step), []

    def stop(*given):
        calls.append(given)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(packing, step, stop)
        with pytest.raises(KeyboardInterrupt):
            pack_it(source, tmp_path / "stopped")
    corpus = pack_it(source, tmp_path / "stopped")
    assert (texts_of(corpus.train), texts_of(corpus.heldout)) == naive(texts, "all")


def test_two_processes_at_once(tmp_path):
    """One packs, the other waits and finds it packed."""
    source = write_lines(tmp_path / "a.txt", make_texts(6_000))  # enough that the later one comes in time
    workers = [run_worker(tmp_path / "a.txt", tmp_path / "both", "all", seconds=1.0) for _ in range(2)]
    (first, errors_a), (second, errors_b) = (finish(worker) for worker in workers)
    assert first[:2] == second[:2]
    assert "waiting for it" in errors_a + errors_b
    pack_it(source, tmp_path / "alone")
    assert packed_files(tmp_path / "both") == packed_files(tmp_path / "alone")


@pytest.mark.long
def test_memory_is_flat(tmp_path):
    """Seven times the text, less than 18 MB more at the peak; its ids kept in lists would be 24 MB more."""
    peaks = []
    for size, name in ((500_000, "small"), (3_500_000, "large")):
        texts = make_texts(1000)
        num_bytes = sum(len(text.encode()) for text in texts)
        with (tmp_path / f"{name}.txt").open("w") as file:
            for number in range(size // num_bytes):
                file.writelines(f"{text} {number}\n" for text in texts)
        (tokens, _, peak), _ = finish(run_worker(tmp_path / f"{name}.txt", tmp_path / name, "all"))
        assert tokens > 0.75 * size
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 18_000_000
