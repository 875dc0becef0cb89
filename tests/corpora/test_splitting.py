"""Splitting by what a text says."""

from __future__ import annotations

import numpy as np
import pytest

from lape_ds.corpora.splitting import LINE, bucket_of, mostly_repeated, text_keys


@pytest.mark.parametrize("other", ["ĠUNJU  hawn", "\tġunju\nhawn\r\n", "Ġunju hawn", " ġunju hawn"])
def test_the_same_text_has_the_same_key(other):
    """Case, white space, and letters composed or decomposed (G + dot above) do not tell texts apart."""
    assert text_keys(other).document == text_keys("ġunju hawn").document


def test_other_texts_have_other_keys():
    assert text_keys("ġunju hawn").document != text_keys("gunju hawn").document
    assert text_keys("ab c").document != text_keys("a bc").document


def test_line_of_a_one_line_text_is_the_text():
    keys = text_keys("  One  LINE ")
    assert keys.lines == [keys.document]
    assert text_keys("a\n\n b \n").lines == [text_keys("a").document, text_keys("B").document]
    assert text_keys("a\n\n b \n").line_bytes == [1, 1]


def test_share_and_buckets_are_independent_and_even():
    """20,000 texts at 10 %: 2,000 held out, sd 42; each bucket 125 of them, sd 11. Five sd either way."""
    keys = [text_keys(f"text {number}") for number in range(20_000)]
    heldout = np.array([keys_.document for keys_ in keys if keys_.is_heldout(0.1)], np.uint64)
    assert abs(len(heldout) - 2000) < 5 * 42
    counts = np.bincount(bucket_of(heldout), minlength=16)
    assert len(counts) == 16
    assert all(abs(counts - 125) < 5 * 11)


def test_mostly_repeated_against_a_naive_loop():
    random = np.random.default_rng(0)
    vocabulary = [f"line {number} " + "x" * int(random.integers(0, 30)) for number in range(400)]

    def draw(count):
        return ["\n".join(random.choice(vocabulary, random.integers(1, 6))) for _ in range(count)]

    heldout, train = draw(60), draw(60)
    keys = [text_keys(text) for text in heldout]
    lines = np.zeros(sum(len(k.lines) for k in keys), LINE)
    lines["hash"] = [line for k in keys for line in k.lines]
    lines["num_bytes"] = [size for k in keys for size in k.line_bytes]
    ends = np.cumsum([len(k.lines) for k in keys]).astype(np.uint64)
    train_lines = np.array([line for text in train for line in text_keys(text).lines], np.uint64)

    train_set = {line.strip() for text in train for line in text.split("\n")}
    expected = []
    for text in heldout:
        sizes = [(len(line.strip()), line.strip() in train_set) for line in text.split("\n")]
        expected.append(2 * sum(size for size, seen in sizes if seen) > sum(size for size, _ in sizes))
    assert mostly_repeated(lines, ends, train_lines).tolist() == expected
    assert 0 < sum(expected) < len(expected)
    assert not mostly_repeated(lines, ends, train_lines[:0]).any()
    assert mostly_repeated(lines[:0], ends[:0], train_lines).shape == (0,)
