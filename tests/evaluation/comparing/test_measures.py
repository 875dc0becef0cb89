"""Sums over documents give the scores that the harness and sacrebleu give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sacrebleu
from lm_eval.api.metrics import bits_per_byte, chrfpp

from lape_ds.errors import UserError
from lape_ds.evaluation.comparing import measures
from lape_ds.evaluation.comparing.measures import NoMeasure, bleu, chrf, measured

REFERENCES = [
    "Il-qattus jorqod fuq is-sodda.",
    "ix-xita niżlet bil-mod, u l-kelb baqa' barra",
    "",
    "წვიმა მოდის",
    "a",
    "It's 14:30 (local time) - hurry!",
]
HYPOTHESES = [
    "Il-qattus raqad fuq is-sodda.",
    "ix-xita niżlet malajr, u l-kelb mar barra bil-mod",
    "something",
    "თოვლი მოდის",
    "",
    "It is 14:30 (local) - hurry up!",
]
PAIRS = list(zip(REFERENCES, HYPOTHESES, strict=True))


def value(metric: str, values: list) -> float:
    measure, contributions = measured(metric, values)
    return float(measure.value(contributions.sum(axis=0)))


@pytest.mark.parametrize("chosen", [slice(None), slice(1), slice(2, 3), slice(3, 6), slice(4, 5)])
def test_chrf_is_sacrebleus(chosen: slice):
    hypotheses, references = HYPOTHESES[chosen], REFERENCES[chosen]
    for metric, order in (("chrf", 0), ("chrf++", 2)):
        expected = sacrebleu.corpus_chrf(hypotheses, [references], word_order=order).score
        assert value(metric, PAIRS[chosen]) == pytest.approx(expected, rel=1e-12)
    assert value("chrf++", PAIRS[chosen]) == pytest.approx(chrfpp(PAIRS[chosen]), rel=1e-12)


@pytest.mark.parametrize(
    "chosen", [slice(None), slice(1), slice(2, 3), slice(1, 4), slice(5, 6), slice(0, 2)]
)
def test_bleu_is_sacrebleus(chosen: slice):
    expected = sacrebleu.corpus_bleu(HYPOTHESES[chosen], [REFERENCES[chosen]]).score
    assert value("bleu", PAIRS[chosen]) == pytest.approx(expected, rel=1e-12)


def test_spbleu_is_sacrebleus_or_one_line_without_its_tokenizer(monkeypatch: pytest.MonkeyPatch):
    """On words in place of its pieces, which are not on every machine."""

    def absent() -> None:
        raise UserError("spBLEU's tokenizer is not here")

    pairs = [("one reference", "and one hypothesis of it")]
    monkeypatch.setattr(measures, "require_spbleu", absent)
    with pytest.raises(UserError, match=r"^spBLEU's tokenizer is not here$"):
        measured("spbleu", pairs)
    monkeypatch.setattr(measures, "require_spbleu", lambda: None)
    monkeypatch.setattr(measures, "BLEU", lambda tokenize, references: sacrebleu.BLEU(references=references))
    hypotheses, references = HYPOTHESES[:2], REFERENCES[:2]
    expected = sacrebleu.corpus_bleu(hypotheses, [references]).score
    assert expected != pytest.approx(sacrebleu.corpus_bleu(references, [hypotheses]).score, rel=1e-3)
    assert value("spbleu", PAIRS[:2]) == pytest.approx(expected, rel=1e-12)


def test_the_reference_comes_first():
    reference, hypothesis = "the cat sat on the mat by the door", "the cat sat"
    for metric, scorer in (
        ("chrf", sacrebleu.CHRF()),
        ("chrf++", sacrebleu.CHRF(word_order=2)),
        ("bleu", sacrebleu.BLEU(max_ngram_order=4)),
    ):
        pairs = [(f"{reference} {n}", f"{hypothesis} on {n}") for n in range(3)]
        expected, turned = (
            scorer.corpus_score([one[1 - turn] for one in pairs], [[one[turn] for one in pairs]]).score
            for turn in (0, 1)
        )
        assert abs(expected - turned) > 1
        assert value(metric, pairs) == pytest.approx(expected, rel=1e-12)


def test_resampled_sums_are_the_score_of_the_resample():
    drawn = [0, 1, 1, 5, 3, 0]
    counts = np.bincount(drawn, minlength=len(PAIRS))
    for metric, function in (("chrf++", chrf), ("bleu", bleu)):
        _, contributions = measured(metric, PAIRS)
        hypotheses, references = [HYPOTHESES[k] for k in drawn], [REFERENCES[k] for k in drawn]
        scorer = sacrebleu.CHRF(word_order=2) if metric == "chrf++" else sacrebleu.BLEU()
        expected = scorer.corpus_score(hypotheses, [references]).score
        assert function(counts @ contributions) == pytest.approx(expected, rel=1e-12)


def test_several_references():
    pairs = [(["the cat", "a cat sat"], "a cat sits"), (["one", "eins"], "eins")]
    expected = sacrebleu.corpus_chrf(
        ["a cat sits", "eins"], [["the cat", "one"], ["a cat sat", "eins"]]
    ).score
    assert value("chrf", pairs) == pytest.approx(expected, rel=1e-12)


def test_bits_per_byte_are_the_harnesses():
    values = [(-12.5, 20), (-300.0, 251), (-1.0, 3)]
    assert value("bits_per_byte", values) == pytest.approx(bits_per_byte(values), rel=1e-12)
    assert value("bits_per_byte", values) == pytest.approx(313.5 / 274 / math.log(2), rel=1e-12)


def test_right_or_wrong_is_told_from_other_means():
    assert measured("acc", [1.0, 0.0, 1])[0].is_accuracy
    assert not measured("mc2", [1.0, 0.25])[0].is_accuracy
    assert value("mc2", [1.0, 0.25]) == 0.625


@pytest.mark.parametrize(("metric", "values"), [("mcc", [(1, 0), (1, 1)]), ("f1", [[0, 1]]), ("x", [None])])
def test_a_metric_of_all_documents_at_once_has_no_measure(metric: str, values: list):
    with pytest.raises(NoMeasure, match="all documents at once"):
        measured(metric, values)
