"""Tables of a sweep: methods at equal forgetting, at equal gain, and every measured point.

Between the frontiers and the terminal, Markdown and JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from lape_ds.analysis.sweep.frontier import At, Frontier, MethodFrontier, RatePoint, levels
from lape_ds.analysis.sweep.results import SweepResults
from lape_ds.markdown import markdown_table
from lape_ds.recipe import rate_label

_MOST_LEVELS = 6  # columns that a terminal has room for
OUTSIDE = "–"
CAPTION = (
    "Bits per byte of held-out text, read off each method's frontier; ± half the range over the frontiers of single seeds; "
    f"{OUTSIDE} outside what was measured."
)
NO_LEVEL = "Nothing to compare: no round level lies in what was measured; give sweep.variants more rates."


@dataclass(frozen=True)
class LevelTable:
    """Methods by levels.

    Attributes:
        title: What is equal, and what is compared.
        levels: One per column.
        rows: A variant's name and its value at each level.
        lower_is_better: Of the values.
    """

    title: str
    levels: list[float]
    rows: list[tuple[str, list[At]]]
    lower_is_better: bool

    def best(self, column: int) -> float | None:
        """The best value of a column."""
        values = [row[column].mean for _, row in self.rows]
        known = [value for value in values if value is not None]
        return (min if self.lower_is_better else max)(known, default=None)

    def cell(self, at: At, *, between: str) -> str:
        """A value and its spread, `between` between them."""
        if at.mean is None:
            return OUTSIDE
        value = _signed(at.mean) if self.lower_is_better else f"{at.mean:.3f}"
        return value if at.spread is None else f"{value}{between}±{at.spread:.3f}"


def level_tables(results: SweepResults) -> list[LevelTable]:
    """Gain at equal forgetting, and forgetting at equal gain."""
    compared = [(method, method.mean) for method in results.methods if method.mean is not None]

    def table(
        title: str,
        measured: Callable[[Frontier], tuple[float, float]],
        value: Callable[[MethodFrontier, float], At],
        lower_is_better: bool,
    ) -> LevelTable:
        columns = levels([measured(mean) for _, mean in compared], most=_MOST_LEVELS) if compared else []
        rows = [(method.name, [value(method, level) for level in columns]) for method, _ in compared]
        return LevelTable(title, columns, rows, lower_is_better)

    return [
        table(
            f"Gain on {results.target_names} at equal mean change of the {len(results.others)} other languages",
            lambda mean: mean.forgetting_range,
            MethodFrontier.gain_at,
            lower_is_better=False,
        ),
        table(
            f"Mean change of the {len(results.others)} other languages at equal gain on {results.target_names}",
            lambda mean: mean.gain_range,
            MethodFrontier.forgetting_at,
            lower_is_better=True,
        ),
    ]


def level_heading(table: LevelTable, level: float) -> str:
    """A column's heading."""
    return f"{level:g}" if table.lower_is_better or level == 0 else f"{level:+g}"


def rich_table(table: LevelTable) -> Table:
    """For the terminal, without its title; value and spread on two lines, so that six levels fit."""
    shown = Table()
    shown.add_column("variant", no_wrap=True)
    for level in table.levels:
        shown.add_column(level_heading(table, level), justify="right", no_wrap=True)
    for name, row in table.rows:
        cells = []
        for column, at in enumerate(row):
            value, *spread = table.cell(at, between="\n").split("\n")
            style = "bold" if at.mean is not None and at.mean == table.best(column) else "none"
            cells.append("\n".join([f"[{style}]{value}[/]", *(f"[dim]{text}[/]" for text in spread)]))
        shown.add_row(name, *cells)
    return shown


def markdown(results: SweepResults, tables: Sequence[LevelTable]) -> str:
    """The whole page, the picture above."""
    weights = f"{results.parameters:,} weights"
    parts = [
        f"# Gain and forgetting: {results.target_names}",
        f"{results.num_runs} runs; base model of {weights}, fingerprint `{results.model_fingerprint[:16]}`. "
        f"Gain: fall of {results.target_names}; change: mean over {', '.join(results.others)} (positive: forgotten).",
        "![frontier](frontier.png)",
        *results.notes,
    ]
    for table in tables:
        head = ["variant", *(level_heading(table, level) for level in table.levels)]
        body = []
        for name, row in table.rows:
            cells = [
                _bold(table.cell(at, between=" "), at.mean is not None and at.mean == table.best(column))
                for column, at in enumerate(row)
            ]
            body.append([name, *cells])
        parts += [f"## {table.title}", markdown_table(head, body) if table.levels else NO_LEVEL]
    parts.append(CAPTION)
    parts += [
        "## Every point",
        markdown_table(*_points(results)),
        "● on its method's frontier. ± half the range over seeds.",
    ]
    return "\n\n".join(parts) + "\n"


def _points(results: SweepResults) -> tuple[list[str], list[list[str]]]:
    head = ["variant", "weights trained", "learning rate", "gain", "change of the others", "", "seeds"]
    rows = []
    for method in results.methods:
        trained = f"{results.trained_parameters[method.name]:,}"
        for rate in method.rates:
            gain, change = point_texts(rate)
            on = "●" if method.is_on_frontier(rate) else ""
            rows.append(
                [method.name, trained, rate_label(rate.learning_rate), gain, change, on, seeds_text(rate)]
            )
    return head, rows


def point_texts(rate: RatePoint) -> tuple[str, str]:
    """Gain and change of one rate, with half the range over seeds; words where there is no mean."""
    if rate.mean is None:
        return OUTSIDE, OUTSIDE
    points = rate.by_seed.values()
    gains, changes = [point.gain for point in points], [point.forgetting for point in points]
    if len(points) == 1:
        return f"{gains[0]:.3f}", _signed(changes[0])
    return (
        f"{rate.mean.gain:.3f} ±{(max(gains) - min(gains)) / 2:.3f}",
        f"{_signed(rate.mean.forgetting)} ±{(max(changes) - min(changes)) / 2:.3f}",
    )


def _signed(value: float) -> str:
    return f"{round(value, 3) + 0.0:+.3f}"  # no -0.000


def seeds_text(rate: RatePoint) -> str:
    """Which seeds came to their end, diverged, are missing."""
    parts = [", ".join(map(str, rate.by_seed))]
    parts += [f"diverged: {', '.join(map(str, rate.diverged))}"] if rate.diverged else []
    parts += [f"not finished: {', '.join(map(str, rate.missing))}"] if rate.missing else []
    return "; ".join(part for part in parts if part)


def _bold(text: str, is_best: bool) -> str:
    return f"**{text}**" if is_best else text


def as_json(results: SweepResults, tables: Sequence[LevelTable]) -> dict[str, Any]:
    """Everything that the page says, in full precision."""
    return {
        "schema_version": 1,
        "unit": "bits per byte of held-out text",
        "targets": list(results.targets),
        "others": list(results.others),
        "model_fingerprint": results.model_fingerprint,
        "parameters": results.parameters,
        "num_runs": results.num_runs,
        "notes": list(results.notes),
        "variants": [_variant(method, results) for method in results.methods],
        "tables": [
            {
                "title": table.title,
                "levels": table.levels,
                "rows": {
                    name: [asdict(at) | {"spread": at.spread} for at in row] for name, row in table.rows
                },
            }
            for table in tables
        ],
    }


def _variant(method: MethodFrontier, results: SweepResults) -> dict[str, Any]:
    return {
        "name": method.name,
        "trained_parameters": results.trained_parameters[method.name],
        "rates": [
            asdict(rate)
            | {
                "mean": None if rate.mean is None else asdict(rate.mean),
                "on_frontier": method.is_on_frontier(rate),
            }
            for rate in method.rates
        ],
    }
