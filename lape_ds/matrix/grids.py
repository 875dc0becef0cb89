"""A grid: methods by languages with a mean over them, each value with what is known of its error; and what Holm says of all.

Between what was measured and the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lape_ds.evaluation.comparing.comparison import Verdict
from lape_ds.evaluation.comparing.statistics import LEVEL, holm

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Value:
    """One cell of a grid.

    Attributes:
        value: In the grid's unit.
        half_width: Half of the 95 % interval, symmetric; None: not known.
        spread: Half the range over seeds; None of one seed.
        p: Two-sided, of its being 0; None: not tested.
        p_holm: The same, adjusted for all cells of the grid.
        verdict: By that.
        num_seeds: Whose mean it is.
        reason: Why there is no interval.
    """

    value: float
    half_width: float | None = None
    spread: float | None = None
    p: float | None = None
    p_holm: float | None = None
    verdict: Verdict = "not tested"
    num_seeds: int = 1
    reason: str | None = None


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        variant: Its name.
        cells: By language; None where it was not measured.
        mean: Over languages; None unless all of them are there.
    """

    variant: str
    cells: dict[str, Value | None]
    mean: Value | None


@dataclass(frozen=True)
class Grid:
    """Methods by languages.

    Attributes:
        id: Of the grid in a table, e.g. `heldout-tuned-gain`.
        title: In words.
        label: The same beside others of its kind (`what`): what it was measured on.
        at: At which learning rate each method stands there.
        level: The equal forgetting, where that is what is equal.
        what: Is told.
        measured: During training, or by which suite's task.
        unit: Of the values.
        better: Which way is.
        interval: What half-widths and spreads are, in words.
        rows: The methods.
        reference: The method from which `against` takes the others.
        against: Each other method less the reference.
    """

    id: str
    title: str
    label: str
    at: Literal["tuned", "equal forgetting"]
    level: float | None
    what: Literal["gain", "forgetting"]
    measured: str
    unit: str
    better: Better
    interval: str
    rows: list[Row]
    reference: str | None
    against: list[Row]


def judged(rows: Sequence[Row], better: Better) -> list[Row]:
    """The same rows with p adjusted over all of them, and verdicts."""
    tested = [value for row in rows for value in _values(row) if value.p is not None]
    adjusted = dict(
        zip(map(id, tested), holm([value.p for value in tested if value.p is not None]), strict=True)
    )

    def with_verdict(value: Value | None) -> Value | None:
        if value is None or value.p is None:
            return value
        p_holm = adjusted[id(value)]
        verdict: Verdict = "no difference shown"
        if p_holm <= LEVEL and value.value != 0:
            verdict = "better" if (value.value > 0) == (better == "higher") else "worse"
        return replace(value, p_holm=p_holm, verdict=verdict)

    return [
        Row(
            row.variant,
            {code: with_verdict(value) for code, value in row.cells.items()},
            with_verdict(row.mean),
        )
        for row in rows
    ]


def _values(row: Row) -> list[Value]:
    return [value for value in (*row.cells.values(), row.mean) if value is not None]


def ordered(rows: Mapping[str, Row], variants: Sequence[str]) -> list[Row]:
    """Those that are there, in the matrix's order."""
    return [rows[variant] for variant in variants if variant in rows]
