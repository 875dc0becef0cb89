"""The numbers of training dynamics as tables.

Beside analyses.py, which puts them around the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lape_ds.languages import find_language
from lape_ds.report.blocks import Row, Table
from lape_ds.report.numbers import Code, Number, count, fixed, general, line, number_at
from lape_ds.report.runs import Run
from lape_ds.report.setup import DASH
from lape_ds.report.sources import Place

_MOST_ROWS = 40  # of a table of steps: of more every so-manieth is shown
_STEP_MEASURES = {
    "loss": "loss",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "update_norm": "update norm",
    "relative_update_norm": "of the weights' norm",
    "kl_per_replayed_token": "KL on replayed text",
}


def dynamics_tables(found: Mapping[Run, Place]) -> list[Table]:
    """A row for each run: from its beginning to its end."""
    rows = []
    for run, place in found.items():
        told = place["summary"]
        ends = [_ends(told.get(key)) for key in ("loss", "heldout_trained", "heldout_others")]
        norms = [number_at(told.get(key)) for key in ("median_gradient_norm", "median_update_norm")]
        cells: list[Any] = [
            count(Number.at(told["steps"])),
            count(Number.at(told["tokens"])),
            *ends,
            *(DASH if norm is None else general(norm, 3) for norm in norms),
        ]
        rows.append(Row(Code(run.label), cells))
    headings = ["run", "steps", "tokens", "loss", "trained", "others", "gradient norm", "update norm"]
    caption = (
        "From beginning to end: loss in nats per token, means over the first and last tenth of the steps; held-out text in bits "
        "per byte; medians of the norms"
    )
    return [Table(caption, headings, rows)]


def dynamics_data(found: Mapping[Run, Place]) -> list[Table]:
    """Held-out text and steps of each run."""
    tables = []
    for run, place in found.items():
        tables += [_heldout(run, place["heldout"]), _steps(run, place["steps"])]
    return tables


def _ends(pair: Place | None) -> Any:
    return DASH if pair is None else line(fixed(Number.at(pair[0])), " → ", fixed(Number.at(pair[1])))


def _heldout(run: Run, heldout: Place) -> Table:
    bits = heldout["bits_per_byte"]
    rows = [
        Row(
            count(Number.at(heldout["step"][index])),
            [fixed(Number.at(values[index])) for _, values in bits.items()],
        )
        for index in range(len(heldout["step"]))
    ]
    names = [find_language(code).name for code in bits.names()]
    return Table(line(Code(run.label), ": held-out text, bits per byte"), ["step", *names], rows)


def _steps(run: Run, steps: Place) -> Table:
    measures = [name for name in _STEP_MEASURES if name in steps]
    rows = [
        Row(
            count(Number.at(steps["step"][index])),
            [
                count(Number.at(steps["tokens"][index])),
                *(_measure(steps[name].get(index)) for name in measures),
            ],
        )
        for index in thinned(len(steps["step"]))
    ]
    headings = ["step", "tokens", *(_STEP_MEASURES[name] for name in measures)]
    return Table(line(Code(run.label), ": steps"), headings, rows)


def _measure(place: Place | None) -> Any:
    return DASH if place is None else general(Number.at(place))


def thinned(length: int) -> Sequence[int]:
    """At most some forty indices, evenly, the last among them."""
    step = max(1, -(-length // _MOST_ROWS))
    return range(length - 1, -1, -step)[::-1]
