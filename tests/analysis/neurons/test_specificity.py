"""Specificity: a matrix whose score is exact, and the bootstrap written down as loops."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from lape_ds.analysis.neurons.ablation_tables import lines
from lape_ds.analysis.neurons.specificity import CONTROLS, Estimate, Specificity
from lape_ds.evaluation.comparing.statistics import resamplings
from lape_ds.identification.ablation import AblatedRow, Ablation
from lape_ds.identification.ablation_rows import Kind
from tests.analysis.neurons.ablations import made_ablation, random_ablation

CODES = ["mlt_Latn", "afr_Latn", "kat_Geor", "npi_Deva", "cym_Latn"]


def test_a_matrix_with_a_known_answer() -> None:
    """Diagonal 3/16, off it 1/16; random 1/32 and 3/32 everywhere but on a fragile text; exact in binary."""

    def change(kind: Kind, code: str, seed: int | None, other: str) -> np.ndarray:
        level = {"identified": 1 / 16, "random": (1 / 32, 3 / 32)[seed or 0], "most_active": 1 / 4}[kind]
        if kind == "identified" and code == other:
            level = 3 / 16
        if kind == "most_active" and other == "afr_Latn":
            level = 1 / 2
        return level * documents[other]

    documents = {code: np.array([64.0, 128.0, 32.0] * 4) for code in CODES}
    scores = Specificity.of(made_ablation(CODES, documents, change, without=["cym_Latn"]), num_resamples=200)
    rows = CODES[:-1]
    for code in rows:
        assert scores.own("identified", code) == pytest.approx(3 / 16)
        assert scores.others("identified", code) == pytest.approx(1 / 16)
        assert scores.by_language["identified"][code].value == pytest.approx(1 / 8)
        assert scores.changes["random"][code] == pytest.approx(dict.fromkeys(CODES, 1 / 16))
        assert scores.by_language["random"][code].value == pytest.approx(0, abs=1e-15)
        assert scores.over["random"][code].value == pytest.approx(1 / 8)
    # The fragile text is 1/4 above the mean of the four others, and a fourth of that below it for each other row.
    active = {code: scores.by_language["most_active"][code].value for code in rows}
    assert active == pytest.approx({code: 1 / 4 if code == "afr_Latn" else -1 / 16 for code in rows})
    assert scores.overall["most_active"].value == pytest.approx((1 / 4 - 3 / 16) / 4)
    assert scores.overall["identified"].value == pytest.approx(1 / 8)
    assert scores.overall_over["most_active"].value == pytest.approx(1 / 8 - 1 / 64)
    assert scores.hit_hardest("identified") == 4
    assert scores.hit_hardest("most_active") == 1


def document_bits(ablation: Ablation, kind: str, row: str, code: str) -> list[float]:
    """By document; of a difference between kinds the difference."""
    if kind.startswith("over "):
        ours = document_bits(ablation, "identified", row, code)
        theirs = document_bits(ablation, kind.removeprefix("over "), row, code)
        return [one - other for one, other in zip(ours, theirs, strict=True)]
    rows = [one for one in ablation.rows if (one.ablated.kind, one.ablated.language) == (kind, row)]
    return [
        sum(float(one.nats[code][i] - ablation.base[code][i]) for one in rows) / len(rows) / math.log(2)
        for i in range(len(ablation.base[code]))
    ]


def score_and_variance(
    ablation: Ablation, kind: str, row: str, drawn: dict[str, list[int]]
) -> tuple[float, float]:
    """From the documents drawn: diagonal less mean off it, and what a survey statistician calls the variance of ratios."""
    score = variance = 0.0
    for code in ablation.languages:
        weight = 1.0 if code == row else -1.0 / (len(ablation.languages) - 1)
        bits = document_bits(ablation, kind, row, code)
        num_bytes = ablation.num_bytes[code].tolist()
        total = sum(num_bytes[i] for i in drawn[code])
        ratio = sum(bits[i] for i in drawn[code]) / total
        n = len(drawn[code])
        residuals = sum((bits[i] - ratio * num_bytes[i]) ** 2 for i in drawn[code])
        score += weight * ratio
        variance += weight**2 * n / (n - 1) * residuals / total**2
    return score, variance


def symmetric(value: float, error: float, t: list[float]) -> Estimate:
    """Half-width: the error times the 97.5 % quantile of t or of -t, whichever is larger."""
    rank = math.floor(0.025 * (len(t) + 1))
    return Estimate(value, error * max(sorted(t)[-rank], -sorted(t)[rank - 1]))


def draws(ablation: Ablation, number: int) -> list[dict[str, list[int]]]:
    """The documents of every resample, by number and as often as they are drawn."""
    found: list[dict[str, list[int]]] = [{} for _ in range(number)]
    for code in ablation.languages:
        size = len(ablation.num_bytes[code])
        counts = np.concatenate(list(resamplings(size, num_resamples=number, seed=zlib.crc32(code.encode()))))
        for resample, row in zip(found, counts.astype(int).tolist(), strict=True):
            resample[code] = [i for i, times in enumerate(row) for _ in range(times)]
    return found


def test_intervals_are_those_of_loops() -> None:
    ablation = random_ablation(CODES, num_documents=12, without=["kat_Geor"])
    number, rows = 120, ablation.row_languages
    scores = Specificity.of(ablation, num_resamples=number)
    resamples = draws(ablation, number)
    everything = {code: list(range(len(ablation.num_bytes[code]))) for code in CODES}
    seed = zlib.crc32(b"languages")
    drawn_rows = np.concatenate(list(resamplings(len(rows), num_resamples=number, seed=seed))).astype(int)
    found = {**scores.by_language, **{f"over {kind}": scores.over[kind] for kind in CONTROLS}}
    found_overall = {**scores.overall, **{f"over {kind}": scores.overall_over[kind] for kind in CONTROLS}}
    for kind in found:
        values, per_resample = [], []
        for row in rows:
            value, variance = score_and_variance(ablation, kind, row, everything)
            again = [score_and_variance(ablation, kind, row, drawn) for drawn in resamples]
            t = [(star - value) / math.sqrt(star_variance) for star, star_variance in again]
            expected = symmetric(value, math.sqrt(variance), t)
            assert found[kind][row].value == pytest.approx(expected.value, abs=1e-12)
            assert found[kind][row].half_width == pytest.approx(expected.half_width, rel=1e-6)
            values.append(value)
            per_resample.append([star for star, _ in again])
        t = []
        for b in range(number):
            drawn = [per_resample[k][b] for k, times in enumerate(drawn_rows[b]) for _ in range(times)]
            error = np.std(drawn, ddof=1) / math.sqrt(len(rows))
            distance = float(np.mean(drawn) - np.mean(values))
            t.append(math.copysign(math.inf, distance) if error == 0 else distance / error)
        expected = symmetric(float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(rows)), t)
        assert found_overall[kind].value == pytest.approx(expected.value, abs=1e-12)
        assert found_overall[kind].half_width == pytest.approx(expected.half_width, rel=1e-6)


def test_planted_specificity_is_found_and_none_is_not() -> None:
    more = "isl_Latn lit_Latn slk_Latn lvs_Latn slv_Latn mkd_Cyrl ekk_Latn eng_Latn deu_Latn fra_Latn spa_Latn rus_Cyrl cmn_Hans"
    codes = [*CODES, *more.split()]
    scores = Specificity.of(random_ablation(codes, num_documents=150), num_resamples=2000)
    assert scores.overall["identified"].is_positive
    assert all(scores.overall_over[kind].is_positive for kind in CONTROLS)
    assert all(scores.by_language["identified"][code].is_positive for code in codes)
    none = Specificity.of(random_ablation(codes, own=0.004, num_documents=150), num_resamples=2000)
    assert not any(none.overall_over[kind].is_positive for kind in CONTROLS)


def test_what_resamples_do_not_tell_has_no_interval() -> None:
    few = Specificity.of(random_ablation(CODES, num_documents=7), num_resamples=200)
    assert few.overall["identified"].half_width is None
    assert all(one.half_width is None for one in few.by_language["identified"].values())
    assert not few.overall["identified"].is_positive
    one_row = Specificity.of(random_ablation(CODES, without=CODES[1:]), num_resamples=200)
    assert one_row.overall["identified"].half_width is None
    assert one_row.by_language["identified"][CODES[0]].half_width is not None
    assert one_row.overall["identified"].value == one_row.by_language["identified"][CODES[0]].value


def with_few_documents(ablation: Ablation, few: str) -> Ablation:
    """Nine of a language, one too few."""

    def cut(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {code: part[:9] if code == few else part for code, part in parts.items()}

    rows = tuple(AblatedRow(row.ablated, cut(row.nats)) for row in ablation.rows)
    return replace(ablation, num_bytes=cut(ablation.num_bytes), base=cut(ablation.base), rows=rows)


def without_language(ablation: Ablation, code: str) -> Ablation:
    """As though it had never been measured."""
    kept = [other for other in ablation.languages if other != code]
    num_tokens = {other: ablation.num_tokens[other] for other in kept}
    num_bytes = {other: ablation.num_bytes[other] for other in kept}
    base = {other: ablation.base[other] for other in kept}
    rows = tuple(row for row in ablation.rows if row.ablated.language != code)
    return Ablation(ablation.neuron_set.only(*kept), ablation.settings, num_tokens, num_bytes, base, rows)


def test_a_language_with_too_few_documents_costs_only_its_own_interval() -> None:
    """All others have the scores and intervals that they would have without it."""
    full, few = random_ablation(CODES), "kat_Geor"
    ablation = with_few_documents(full, few)
    scores = Specificity.of(ablation, num_resamples=200)
    expected = Specificity.of(without_language(ablation, few), num_resamples=200)
    assert scores.too_few == (few,)
    assert scores.averaged == tuple(code for code in CODES if code != few)
    pairs: list[tuple[Mapping[Any, Estimate], Mapping[Any, Estimate]]] = [
        (scores.overall, expected.overall),
        (scores.overall_over, expected.overall_over),
        *((scores.by_language[kind], expected.by_language[kind]) for kind in scores.by_language),
        *((scores.over[kind], expected.over[kind]) for kind in CONTROLS),
    ]
    for found, there in pairs:
        assert found.keys() - there.keys() <= {few}
        for name, one in there.items():
            assert astuple(found[name]) == pytest.approx(astuple(one))
            assert found[name].half_width is not None
        assert few not in found or found[few].half_width is None
    own, others = scores.own("identified", few), scores.others("identified", few)
    assert scores.by_language["identified"][few].value == pytest.approx(own - others)
    told = list(lines(ablation, scores))
    assert any(line.startswith("fewer than 10 held-out documents") and few in line for line in told)
    assert not any(
        line.startswith("fewer than") for line in lines(full, Specificity.of(full, num_resamples=200))
    )


def test_of_two_languages_one_with_few_documents_leaves_no_interval() -> None:
    """The other has none but it to be compared with."""
    full = random_ablation(CODES[:2])
    ablation = with_few_documents(full, full.languages[0])
    scores = Specificity.of(ablation, num_resamples=200)
    assert all(one.half_width is None for one in scores.by_language["identified"].values())
    assert scores.overall["identified"].half_width is None
    assert scores.averaged == full.languages
