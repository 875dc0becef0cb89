"""The curve and the bootstrap, against naive sums of buckets and naive selection; planted sure and unsure neurons."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.neurons import stability
from lape_ds.neurons.counts import Counts
from lape_ds.neurons.selection import select_neurons
from lape_ds.neurons.stability import (
    CURVE,
    Agreement,
    ConfidenceSummary,
    draw_buckets,
    half_agreement,
    measure_stability,
)
from lape_ds.recipe import IdentifySection
from tests.neurons.test_selection import CODES, KNOBS, all_counts
from tests.oracles.selection import naive_most_active, naive_select

Sets = list[set[tuple[int, int]]]


def section(method: str = "lape", **settings: Any) -> IdentifySection:
    knobs = dict(KNOBS) if "lape" in method else {"top_rate": KNOBS["top_rate"]}
    return IdentifySection(method=method, **(knobs | settings))  # pyright: ignore[reportArgumentType]


def naive_sets(method: str, weights: dict[str, list[int]]) -> Sets:
    """Selected from the buckets written out, each as often as it is drawn."""
    columns: list[Tensor] = []
    for counts in all_counts():
        drawn = [b for b, weight in enumerate(weights[counts.settings.language]) for _ in range(weight)]
        active = sum((counts.active[b].double() for b in drawn), torch.zeros(3, 20, dtype=torch.float64))
        columns.append(active / sum(int(counts.tokens[b]) for b in drawn))
    probs = torch.stack(columns, -1)
    if method == "probability":
        return [set(one) for one in naive_most_active(probs, top_rate=KNOBS["top_rate"])]
    families = ["s", "s", "m", "g"] if method == "family_lape" else None
    return [set(one) for one in naive_select(probs, **KNOBS, families=families)]


def naive_jaccard(first: set[tuple[int, int]], second: set[tuple[int, int]]) -> float:
    return len(first & second) / len(first | second) if first | second else 1.0


def prefix(buckets: int) -> dict[str, list[int]]:
    return {code: [1] * buckets + [0] * (16 - buckets) for code in CODES}


@pytest.mark.parametrize("at_once", [1, 2**30])
@pytest.mark.parametrize("method", ["lape", "family_lape", "probability"])
def test_equals_naive_resampling(method: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample in memory at a time or all."""
    monkeypatch.setattr(stability, "_bytes_at_once", lambda: at_once)
    found = measure_stability(section(method, bootstrap_resamples=12), all_counts, seed=3)
    curve = [naive_sets(method, prefix(buckets)) for buckets in CURVE]
    resamples = [naive_sets(method, {code: draw_buckets(3, r, code) for code in CODES}) for r in range(12)]
    assert [one.code for one in found.languages] == CODES
    for k, (one, counts) in enumerate(zip(found.languages, all_counts(), strict=True)):
        full = curve[-1][k]
        assert [point.num_neurons for point in one.curve] == [len(sets[k]) for sets in curve]
        assert [point.num_tokens for point in one.curve] == [int(counts.tokens[:b].sum()) for b in CURVE]
        assert [point.jaccard_to_all for point in one.curve] == [naive_jaccard(s[k], full) for s in curve]
        following = [naive_jaccard(a[k], b[k]) for a, b in pairwise(curve)]
        assert [point.jaccard_to_next for point in one.curve] == [*following, None]
        assert one.confidence is not None
        assert one.resampled is not None
        expected = [sum(neuron in sets[k] for sets in resamples) / 12 for neuron in sorted(full)]
        assert one.confidence.tolist() == pytest.approx(expected)
        assert one.resampled.mean == pytest.approx(sum(naive_jaccard(s[k], full) for s in resamples) / 12)
    assert half_agreement(section(method), all_counts) == {one.code: one.half for one in found.languages}


def test_half_agreement_reads_the_counts_once() -> None:
    passes = []

    def load() -> list[Counts]:
        passes.append(1)
        return all_counts()

    half_agreement(section(), load)
    assert len(passes) == 1


def test_halves_of_the_first_documents_do_not_foretell_others() -> None:
    """A sorted source: the counted stretch agrees with itself, and the next one of the same size brings another set."""

    def stretch(index: int) -> list[Counts]:
        made = []
        for k, counts in enumerate(all_counts()):
            active = torch.full((16, 3, 20), 6, dtype=torch.int32)
            active[:, 1, index] = 60 if k == 0 else 0
            made.append(replace(counts, active=active, tokens=torch.full((16,), 60)))
        return made

    asked = IdentifySection(top_rate=1 / 60, filter_rate=0.01, activation_bar_ratio=0.005)
    first, later = stretch(4), stretch(9)
    assert half_agreement(asked, lambda: first)[CODES[0]] == Agreement(1.0, 1)
    assert half_agreement(asked, lambda: later)[CODES[0]] == Agreement(1.0, 1)
    one, other = (select_neurons(asked, counts).neurons(CODES[0]).tolist() for counts in (first, later))
    assert (one, other) == ([[1, 4]], [[1, 9]])


def planted() -> list[Counts]:
    """Of 60 neurons, (1, 4) is the first language's alone, in every document; so is (2, 7), in those of bucket 3 alone."""
    made = []
    for k, counts in enumerate(all_counts()):
        active = torch.full((16, 3, 20), 6, dtype=torch.int32)
        active[:, 1, 4] = 60 if k == 0 else 0
        active[:, 2, 7] = 0
        active[3, 2, 7] = 60 if k == 0 else 0
        made.append(replace(counts, active=active, tokens=torch.full((16,), 60)))
    return made


def test_a_neuron_of_one_bucket_is_unsure_and_a_languages_own_is_sure() -> None:
    """A bucket is missing in (15/16)^16 = 36 % of the resamples; 0.2 is six standard errors of 200 away."""
    asked = IdentifySection(
        top_rate=2 / 60, filter_rate=0.01, activation_bar_ratio=0.005, bootstrap_resamples=200
    )
    found = measure_stability(asked, planted, seed=0).languages[0]
    assert found.curve[-1].num_neurons == 2
    assert found.confidence is not None
    sure, unsure = found.confidence.tolist()
    assert sure == 1.0
    assert unsure == pytest.approx(1 - (15 / 16) ** 16, abs=0.2)
    assert unsure < 0.9


def test_an_empty_set_is_never_stable() -> None:
    alike = [
        replace(counts, active=(torch.ones(16, 3, 20) * 7).int(), tokens=torch.full((16,), 70))
        for counts in all_counts()
    ]
    assert half_agreement(section(), lambda: alike)["mlt_Latn"] == Agreement(1.0, 0)
    assert not Agreement(1.0, 0).is_stable(0.5)
    assert Agreement(0.95, 1).is_stable(0.95)
    assert not Agreement(0.949, 1).is_stable(0.95)
    found = measure_stability(section(bootstrap_resamples=2), lambda: alike, seed=0)
    assert found.as_json()["languages"]["mlt_Latn"]["confidence"] is None


def test_a_language_without_text_in_a_sample_has_no_neuron_there() -> None:
    def late() -> list[Counts]:
        first, *others = all_counts()
        active, tokens = first.active.clone(), first.tokens.clone()
        active[:8], tokens[:8] = 0, 0
        return [replace(first, active=active, tokens=tokens), *others]

    found = measure_stability(section(bootstrap_resamples=0), late, seed=0)
    assert [point.num_neurons for point in found.languages[0].curve[:4]] == [0] * 4
    assert found.confidence is None


def test_draws() -> None:
    draws = [draw_buckets(0, r, "mlt_Latn") for r in range(400)]
    assert all(sum(weights) == len(weights) == 16 for weights in draws)
    missing = sum(weights[0] == 0 for weights in draws) / 400
    assert missing == pytest.approx((15 / 16) ** 16, abs=0.1)  # four standard errors
    assert draw_buckets(0, 1, "mlt_Latn") == draws[1]
    assert draws[1] not in (draws[2], draw_buckets(1, 1, "mlt_Latn"), draw_buckets(0, 1, "afr_Latn"))


def test_mean_activation_is_refused() -> None:
    with pytest.raises(UserError, match="mean_activation has no measure of stability"):
        half_agreement(section("mean_activation"), all_counts)
    with pytest.raises(UserError, match="no counts to select"):
        half_agreement(section(), list)


def test_summary() -> None:
    assert ConfidenceSummary.of(torch.tensor([1.0, 0.75, 0.25])) == ConfidenceSummary(2 / 3, 1, 1)
    assert ConfidenceSummary.of(torch.empty(0)) is None
