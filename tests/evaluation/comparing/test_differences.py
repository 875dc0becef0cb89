"""The vectorised engine against a loop over resamples that computes everything anew."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lape_ds.evaluation.comparing import statistics
from lape_ds.evaluation.comparing.differences import MIN_DIFFERING, Paired, estimate
from lape_ds.evaluation.comparing.measures import Measure, chrf, ratio
from lape_ds.evaluation.comparing.statistics import Array, mcnemar, resamplings
from tests.evaluation.comparing.simulated import Draw, bits_alike, right_or_wrong, translations_alike

NUM_RESAMPLES, SEED = 400, 5
Places = NDArray[Any]  # int, of documents that are drawn


def one_model(paired: Paired, model: int = 0) -> Paired:
    return Paired(paired.measure, paired.base, paired.models[model : model + 1])


def mean_of(values: Array) -> Array:
    return np.stack([values, np.ones_like(values)], axis=-1)


def difference(paired: Paired, chosen: Places) -> float:
    model = paired.measure.value(paired.models[0][chosen].sum(axis=0))
    return float(model - paired.measure.value(paired.base[chosen].sum(axis=0)))


def standard_error(paired: Paired, chosen: Places, influence: Array) -> float:
    """Of documents that are drawn: of a ratio by its residuals, else by what each document moves in the data."""
    if paired.measure.value is ratio:
        moved = paired.models[0][chosen, 0] - paired.base[chosen, 0]
        lengths = paired.base[chosen, 1]
        influence = (moved - moved.sum() / lengths.sum() * lengths) / lengths.mean()
    else:
        influence = influence[chosen]
    return math.sqrt(np.var(influence) / (len(chosen) - 1))


def by_loop(paired: Paired) -> tuple[float, float, float]:
    """Difference, half-width and p of the bootstrap, one resample and one document at a time."""
    size = len(paired.base)
    everything = np.arange(size)
    whole = difference(paired, everything)
    without = [difference(paired, np.delete(everything, k)) for k in range(size)]
    influence = (size - 1) * (np.mean(without, dtype=np.float64) - np.array(without, dtype=np.float64))
    error = standard_error(paired, everything, influence)
    t = []
    for counts in np.concatenate(list(resamplings(size, num_resamples=NUM_RESAMPLES, seed=SEED))):
        chosen = np.repeat(everything, counts.astype(int))
        t.append((difference(paired, chosen) - whole) / standard_error(paired, chosen, influence))
    rank = math.floor(0.025 * (NUM_RESAMPLES + 1))
    upper, lower = sorted(t)[-rank], sorted(t)[rank - 1]
    observed = abs(whole) / error
    beyond = max(sum(one >= observed for one in t), sum(one <= -observed for one in t))
    return whole, error * max(upper, -lower), min(1.0, 2 * (beyond + 1) / (NUM_RESAMPLES + 1))


@pytest.mark.parametrize("draw", [bits_alike, translations_alike])
def test_an_estimate_is_the_loops(draw: Draw, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(statistics, "_CHUNK", 40 * 150)  # resamples come in three parts
    paired = one_model(draw(np.random.default_rng(2), 40))
    found = estimate({"task": paired}, {}, num_resamples=NUM_RESAMPLES, seed=SEED)[0]["task"][0]
    assert (found.difference, found.half_width, found.p) == pytest.approx(by_loop(paired), rel=1e-9)
    assert found.value - found.base == pytest.approx(found.difference)
    assert found.gained is None


def test_right_or_wrong_has_the_exact_p_and_an_interval_that_agrees():
    rng = np.random.default_rng(0)
    not_shown = 0
    for gain in (0.0, 0.1, 0.2):
        paired = right_or_wrong(rng, 100, gain=gain)
        found = estimate({"task": paired}, {}, num_resamples=NUM_RESAMPLES, seed=SEED)[0]["task"]
        for one, model in zip(found, paired.models, strict=True):
            gained = int(((model[:, 0] == 1) & (paired.base[:, 0] == 0)).sum())
            lost = int(((model[:, 0] == 0) & (paired.base[:, 0] == 1)).sum())
            assert (one.gained, one.lost, one.p) == (gained, lost, mcnemar(gained, lost))
            assert one.half_width is not None
            assert one.p is not None
            assert (one.p <= 0.05) == (abs(one.difference) > one.half_width)
            not_shown += one.p > 0.05
    assert 10 < not_shown < 50  # of 60: both kinds were there


def test_models_are_estimated_as_if_alone_and_tasks_too():
    rng = np.random.default_rng(1)
    tasks = {"bits": bits_alike(rng, 40), "text": translations_alike(rng, 60)}
    together, _ = estimate(tasks, {}, num_resamples=NUM_RESAMPLES, seed=SEED)
    for name, task in tasks.items():
        alone, _ = estimate({name: one_model(task, 3)}, {}, num_resamples=NUM_RESAMPLES, seed=SEED)
        assert alone[name][0].difference == pytest.approx(together[name][3].difference, rel=1e-12)
        assert alone[name][0].half_width == pytest.approx(together[name][3].half_width, rel=1e-9)
        assert alone[name][0].p == together[name][3].p


def test_a_mean_of_tasks_of_one_size_is_a_task_of_their_mean():
    """The same documents in three languages: resampled together, their correlation stays."""
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 1, size=50)
    differences = [shared + rng.normal(0, 0.3, size=50) + 0.2 for _ in range(3)]
    zero = mean_of(np.zeros(50))
    tasks = {
        str(place): Paired(Measure(ratio), zero, mean_of(one)[None]) for place, one in enumerate(differences)
    }
    weights = {"0": 0.5, "1": 0.3, "2": 0.2}
    weighted = 0.5 * differences[0] + 0.3 * differences[1] + 0.2 * differences[2]
    _, means = estimate(tasks, {"mean": weights}, num_resamples=NUM_RESAMPLES, seed=SEED)
    expected, _ = estimate(
        {"mean": Paired(Measure(ratio), zero, mean_of(weighted)[None])},
        {},
        num_resamples=NUM_RESAMPLES,
        seed=SEED,
    )
    (found,), (alone,) = means["mean"], expected["mean"]
    assert (found.difference, found.half_width, found.p) == pytest.approx(
        (alone.difference, alone.half_width, alone.p), rel=1e-9
    )


def test_a_mean_of_independent_tasks_is_surer_than_each():
    rng = np.random.default_rng(4)
    tasks = {
        str(size): Paired(
            Measure(ratio), mean_of(np.zeros(size)), mean_of(rng.normal(0.1, 1, size=size))[None]
        )
        for size in range(200, 216)  # sixteen sizes: nothing in common
    }
    found, means = estimate(tasks, {"mean": dict.fromkeys(tasks, 1 / 16)}, num_resamples=1000, seed=SEED)
    widths = [one[0].half_width or 0 for one in found.values()]
    assert means["mean"][0].half_width == pytest.approx(np.mean(widths) / 4, rel=0.1)


def test_identical_models_have_no_difference_at_all():
    rng = np.random.default_rng(0)
    tasks = {"a": right_or_wrong(rng, 40), "b": bits_alike(rng, 40), "c": translations_alike(rng, 40)}
    same = {name: Paired(task.measure, task.base, task.base[None]) for name, task in tasks.items()}
    weights = {name: {name: 1.0} for name in same}
    for found in estimate(same, weights, num_resamples=NUM_RESAMPLES, seed=SEED):
        for (one,) in found.values():
            assert (one.difference, one.half_width, one.p) == (0.0, None, 1.0)  # ±0 would read as certainty


@pytest.mark.parametrize("differing", [1, MIN_DIFFERING - 1, MIN_DIFFERING])
def test_few_documents_that_differ_show_nothing(differing: int):
    model = np.zeros(40)
    model[:differing] = 1 + np.arange(differing) / 10
    paired = Paired(Measure(ratio), mean_of(np.zeros(40)), mean_of(model)[None])
    (found,) = estimate({"task": paired}, {}, num_resamples=NUM_RESAMPLES, seed=SEED)[0]["task"]
    if differing < MIN_DIFFERING:
        assert (found.p, found.half_width) == (None, None)
        assert found.reason == "fewer than 6 documents scored otherwise"
    else:
        assert found.p is not None
        assert found.p >= 2.0 ** (1 - differing)


def test_a_constant_difference_is_as_sure_as_a_sign_test():
    base = np.random.default_rng(0).normal(size=20)
    paired = Paired(Measure(ratio), mean_of(base), mean_of(base + 0.5)[None])
    (found,) = estimate({"task": paired}, {}, num_resamples=NUM_RESAMPLES, seed=SEED)[0]["task"]
    assert found.difference == pytest.approx(0.5)
    assert found.half_width == pytest.approx(0, abs=1e-9)
    assert found.p == 2.0**-19


def test_one_right_answer_more_is_told_without_an_interval():
    base = np.zeros(30)
    model = base.copy()
    model[3] = 1
    paired = Paired(Measure(ratio, is_accuracy=True), mean_of(base), mean_of(model)[None])
    (found,) = estimate({"task": paired}, {}, num_resamples=NUM_RESAMPLES, seed=SEED)[0]["task"]
    assert (found.gained, found.lost, found.p, found.half_width) == (1, 0, 1.0, None)
    assert found.reason == "fewer than 6 documents scored otherwise"


def test_the_measure_reaches_the_engine():
    paired = translations_alike(np.random.default_rng(0), 40)
    (found, *_) = estimate({"task": paired}, {}, num_resamples=40, seed=0)[0]["task"]
    assert found.base == pytest.approx(float(chrf(paired.base.sum(axis=0))), rel=1e-12)
