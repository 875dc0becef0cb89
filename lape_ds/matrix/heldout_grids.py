"""Grids of what the runs themselves measured: held-out bits per byte of the target and of all others.

Between the sweeps' frontiers and the table. A run measures no single documents, so cells have the spread over seeds, and means
an interval over languages: it is about other languages beside these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lape_ds.analysis.sweep.frontier import MethodFrontier, RatePoint, levels
from lape_ds.analysis.sweep.results import SweepResults, read_sweep
from lape_ds.matrix.grids import Better, Grid, Row, Value, judged
from lape_ds.matrix.student import mean_interval
from lape_ds.recipe import MatrixModel
from lape_ds.training.run_folder import read_finished
from lape_ds.training.tuned import tuned_rate

UNIT = "bits per byte"
DURING_TRAINING = "during training"
INTERVAL = "cells: half the range over seeds; mean: 95 % interval over languages (Student)"
ONE_SEED = "one seed, and no single documents during training"
_MOST_LEVELS = 12  # among which the one is chosen that most methods reach


@dataclass(frozen=True)
class Swept:
    """What the sweeps of one model have measured.

    Attributes:
        model: Of the matrix.
        results: By language, of those with a finished run.
        tuned: By language and variant, its tuned learning rate.
    """

    model: MatrixModel
    results: dict[str, SweepResults]
    tuned: dict[str, dict[str, float]]

    @property
    def variants(self) -> list[str]:
        """Of the matrix, in its order."""
        return self.model.languages[0].variants

    @property
    def codes(self) -> list[str]:
        """Of all languages of the matrix."""
        return [language.code for language in self.model.languages]

    def method(self, code: str, variant: str) -> MethodFrontier | None:
        """A variant's frontier in one language."""
        if code not in self.results:
            return None
        return next((method for method in self.results[code].methods if method.name == variant), None)

    def tuned_point(self, code: str, variant: str) -> RatePoint | None:
        """A variant's runs at its tuned rate."""
        method, rate = self.method(code, variant), self.tuned.get(code, {}).get(variant)
        if method is None or rate is None:
            return None
        return next(point for point in method.rates if point.learning_rate == rate)


def read_swept(model: MatrixModel) -> Swept:
    """Reads every run of a model's sweeps.

    Raises:
        UserError: Runs of one language do not fit together.
    """
    results, tuned = {}, {}
    for language in model.languages:
        if any(read_finished(run.run_dir) is not None for run in language.runs):
            results[language.code] = read_sweep(language.recipe)
            rates = {variant: tuned_rate(language.runs_of(variant)) for variant in language.variants}
            tuned[language.code] = {variant: rate for variant, rate in rates.items() if rate is not None}
    return Swept(model, results, tuned)


def heldout_grids(swept: Swept) -> list[Grid]:
    """Gain and forgetting at the tuned rates, and gain at equal forgetting."""

    def gain(code: str, variant: str) -> Value | None:
        return _at_rate(swept.tuned_point(code, variant), "gain")

    def forgetting(code: str, variant: str) -> Value | None:
        return _at_rate(swept.tuned_point(code, variant), "forgetting")

    grids = [
        _grid(
            swept, "tuned-gain", "Gain on the target, each method at its tuned rate", gain, better="higher"
        ),
        _grid(
            swept,
            "tuned-forgetting",
            "Mean rise of the other measured languages (positive: forgotten), each method at its tuned rate",
            forgetting,
            better="lower",
        ),
    ]
    level = equal_level(swept)
    if level is not None:
        grids.append(
            _grid(
                swept,
                "equal-gain",
                f"Gain on the target at an equal mean rise of the others of {level:+g}",
                lambda code, variant: _at_level(swept.method(code, variant), level),
                better="higher",
                level=level,
            )
        )
    return grids


def equal_level(swept: Swept) -> float | None:
    """The round forgetting at which methods can best be compared; None if there is none.

    One that the first method has reached in all languages, then most methods in all, then most in most; of equals the larger.
    """
    ranges = {
        (code, variant): method.mean.forgetting_range
        for code in swept.codes
        for variant in swept.variants
        if (method := swept.method(code, variant)) is not None and method.mean is not None
    }

    def reached(level: float) -> tuple[bool, int, int, float]:
        there = [key for key, (low, high) in ranges.items() if low <= level <= high]
        whole = [
            variant for variant in swept.variants if all((code, variant) in there for code in swept.codes)
        ]
        return swept.variants[0] in whole, len(whole), len(there), level

    found = levels(list(ranges.values()), most=_MOST_LEVELS) if ranges else []
    return max(found, key=reached, default=None)


def _at_rate(point: RatePoint | None, what: str) -> Value | None:
    if point is None or point.mean is None:
        return None
    return _value(getattr(point.mean, what), [getattr(one, what) for one in point.by_seed.values()])


def _at_level(method: MethodFrontier | None, level: float) -> Value | None:
    at = None if method is None else method.gain_at(level)
    return None if at is None or at.mean is None else _value(at.mean, list(at.by_seed.values()))


def _value(mean: float, by_seed: Sequence[float]) -> Value:
    several = len(by_seed) > 1
    return Value(
        mean,
        spread=(max(by_seed) - min(by_seed)) / 2 if several else None,
        num_seeds=max(1, len(by_seed)),
        reason=None if several else ONE_SEED,
    )


def _grid(
    swept: Swept,
    name: str,
    title: str,
    value: Callable[[str, str], Value | None],
    *,
    better: Better,
    level: float | None = None,
) -> Grid:
    cells = {variant: {code: value(code, variant) for code in swept.codes} for variant in swept.variants}
    reference = swept.variants[0]
    others = swept.variants[1:]
    return Grid(
        id=f"heldout-{name}",
        title=title,
        label="held-out text" if level is None else f"held-out text, all at {level:+g} forgetting",
        at="tuned" if level is None else "equal forgetting",
        level=level,
        what="gain" if better == "higher" else "forgetting",
        measured=DURING_TRAINING,
        unit=UNIT,
        better=better,
        interval=INTERVAL,
        rows=judged([_row(variant, cells[variant]) for variant in swept.variants], better),
        reference=reference if others else None,
        against=judged(
            [_row(variant, _less(cells[variant], cells[reference])) for variant in others], better
        ),
    )


def _row(variant: str, cells: Mapping[str, Value | None]) -> Row:
    """With the mean, if no language is missing."""
    known = [cell for cell in cells.values() if cell is not None]
    if len(known) < len(cells):
        return Row(variant, dict(cells), None)
    mean, half_width, p = mean_interval([cell.value for cell in known])
    reason = "one language" if len(known) < 2 else None
    return Row(
        variant,
        dict(cells),
        Value(
            mean, half_width=half_width, p=p, num_seeds=max(cell.num_seeds for cell in known), reason=reason
        ),
    )


def _less(own: Mapping[str, Value | None], reference: Mapping[str, Value | None]) -> dict[str, Value | None]:
    """Differences, language by language."""
    found: dict[str, Value | None] = {}
    for code, one in own.items():
        other = reference[code]
        found[code] = (
            None
            if one is None or other is None
            else Value(
                one.value - other.value, num_seeds=one.num_seeds, reason="a difference of means over seeds"
            )
        )
    return found
