"""A comparison as people read it: on the terminal and in Markdown.

Last on the comparison's way, beside `records.py`, which writes it for other programs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from lape_ds.evaluation.comparing.comparison import ACCURACY, Compared, Comparison, Row, Verdict

_ARROWS = {"higher": "↑", "lower": "↓"}
_WIDTH = 90  # of a log or a file
_FIRST_COLUMNS, _MODEL_COLUMN = 45, 18  # characters: the row's name and the base; each model
_WORDS = {"better": "better", "worse": "worse", "no difference shown": "–", "not tested": ""}
_COLOURS = {"better": "green", "worse": "red", "no difference shown": "dim", "not tested": "dim"}
_NAMED = 6  # tasks in a line before it is cut


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Prints the tables; they are made for 90 columns, with as many models side by side as fit."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=None if os.environ.get("COLUMNS") else _WIDTH, file=console.file)
    labels = list(comparison.folders)[1:]
    most = max(1, (console.width - _FIRST_COLUMNS) // _MODEL_COLUMN)
    for start in range(0, len(labels), most):
        some = labels[start : start + most]
        console.print(_table("tasks", comparison, comparison.tasks, some), "")
        for suite, rows in _by_suite(comparison.means).items():
            console.print(_table(_means_title("means", suite), comparison, rows, some), "")
    for line in [*notes(comparison), *caption(comparison)]:
        console.print(line, highlight=False, style="dim")


def caption(comparison: Comparison) -> list[str]:
    """What the signs in the tables mean."""
    num_tests = {
        name: sum(one.p_holm is not None for row in rows for one in row.models.values())
        for name, rows in (("tasks", comparison.tasks), ("means", comparison.means))
    }
    lines = [
        f"Each model's difference from {comparison.base}, on the same documents. ±: half of the 95 % interval of that row "
        f"by itself ({comparison.num_resamples:,} paired bootstrap resamples, studentised). ↑ ↓: which way is better."
    ]
    corrected = [f"{_counted(num, 'comparison')} of the {name}" for name, num in num_tests.items() if num]
    if corrected:
        lines.append(
            "p: two-sided (exact McNemar where answers are right or wrong), after Holm's correction for all "
            f"{', and for all '.join(corrected)}. better, worse: p ≤ 0.05; –: no difference shown, which is not a proof that "
            "there is none."
        )
    if comparison.trained:
        lines.append("*: trained. others: the languages that were not (from the runs' recipes).")
    if comparison.means:
        lines.append(
            "mean accuracy, the base's too: (score − chance) / (1 − chance), so that a guesser has 0, averaged over a suite's "
            "tasks of a language; all, trained, others: over languages."
        )
    return lines


def notes(comparison: Comparison) -> list[str]:
    """How many rows went which way, and what is not in the tables, a line for each reason."""
    lines = [_count(comparison, label) for label in list(comparison.folders)[1:]]
    by_reason: dict[str, list[str]] = {}
    for row in comparison.tasks:
        reasons = {label: one.estimate.reason for label, one in row.models.items()}
        for reason in dict.fromkeys(filter(None, reasons.values())):
            who = [label for label in reasons if reasons[label] == reason]
            own = f"{row.title} {row.language}"  # as in the table
            name = own if len(who) == len(reasons) else f"{own} ({', '.join(who)})"
            by_reason.setdefault(reason, []).append(name)
    lines += [f"No interval, {reason}: {_some(names)}." for reason, names in by_reason.items()]
    if comparison.left_out:
        names = [f"{task} (only {', '.join(labels)})" for task, labels in comparison.left_out.items()]
        lines.append(f"Left out, not measured for every model: {_some(names)}.")
    return lines


def _count(comparison: Comparison, label: str) -> str:
    verdicts = [row.models[label].verdict for row in comparison.tasks]
    shown: tuple[Verdict, ...] = ("better", "worse", "no difference shown", "not tested")
    return f"{label}: {', '.join(f'{verdicts.count(one)} {one}' for one in shown if one in verdicts)}."


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _by_suite(means: Sequence[Row]) -> dict[str | None, list[Row]]:
    found: dict[str | None, list[Row]] = {}
    for row in means:
        found.setdefault(row.suite, []).append(row)
    return found


def _means_title(what: str, suite: str | None) -> str:
    return f"{what} over tasks" + ("" if suite is None else f" of {suite}")


def _table(title: str, comparison: Comparison, rows: Sequence[Row], labels: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
    table.add_column("task, language", no_wrap=True, overflow="fold")
    table.add_column(comparison.base, justify="right", overflow="fold")
    for label in labels:
        table.add_column(label, justify="right", overflow="fold", min_width=_MODEL_COLUMN - 2)
    for place, row in enumerate(rows):
        table.add_row(
            f"{row.title} {_ARROWS[row.direction]} {_language(row, comparison)}\n[dim]{_measure(row)}[/dim]",
            number(row.base, row),
            *(_cell(row, row.models[label]) for label in labels),
            end_section=place + 1 == len(rows) or rows[place + 1].title != row.title,
        )
    return table


def _language(row: Row, comparison: Comparison) -> str:
    return f"{row.language}{'*' if row.language in comparison.trained else ''}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _measure(row: Row) -> str:
    if row.tasks:
        return f"over {_counted(len(row.tasks), 'task')}{', chance = 0' if row.metric == ACCURACY else ''}"
    metric = "" if row.metric == row.title else f"{row.metric}, "
    chance = "" if row.random_baseline is None else f", chance {row.random_baseline:.3g}"
    return f"{metric}n {row.num_documents}{chance}"


def _cell(row: Row, compared: Compared) -> str:
    found, colour = compared.estimate, _COLOURS[compared.verdict]
    half = "" if found.half_width is None else f" ±{number(found.half_width, row)}"
    p = "not tested" if compared.p_holm is None else f"p {probability(compared.p_holm)}"
    return f"{signed(found.difference, row)}{half}\n[{colour}]{f'{p} {_WORDS[compared.verdict]}'.rstrip()}[/{colour}]"


def number(value: float, row: Row) -> str:
    """A score of a row: two decimals where scores go to 100, four where they go to about 1."""
    return f"{value:.2f}" if _is_percent(row) else f"{value:.4f}"


def signed(value: float, row: Row) -> str:
    """A difference."""
    return f"{value:+.2f}" if _is_percent(row) else f"{value:+.4f}"


def _is_percent(row: Row) -> bool:
    return row.metric.startswith("chrf") or row.metric.endswith(("bleu", "ter"))


def probability(p: float) -> str:
    """A p, never 0."""
    return f"{p:.4f}" if p >= 1e-4 else "<0.0001"


def markdown(comparison: Comparison, *, command: str) -> str:
    """The tables with every model, the settings beneath."""
    labels = list(comparison.folders)[1:]
    parts = [f"# {', '.join(labels)} against {comparison.base}", ""]
    parts += _markdown_table(comparison, comparison.tasks, labels)
    for suite, rows in _by_suite(comparison.means).items():
        parts += ["", f"## {_means_title('Means', suite)}", "", *_markdown_table(comparison, rows, labels)]
    parts += ["", *(f"{line}\n" for line in [*notes(comparison), *caption(comparison)])]
    return "\n".join([*parts, f"`{command}`", ""])


def _markdown_table(comparison: Comparison, rows: Sequence[Row], labels: Sequence[str]) -> list[str]:
    per_model = [
        heading for label in labels for heading in (f"{label} − {comparison.base}", "p, p (Holm)", "verdict")
    ]
    headings = ["task", "language", "metric", "n or tasks", "chance", comparison.base, *per_model]
    lines = [
        "| " + " | ".join(map(_escaped, headings)) + " |",
        "| --- | --- | --- |" + " ---: |" * 3 + " ---: | ---: | --- |" * len(labels),
    ]
    for row in rows:
        chance = "–" if row.random_baseline is None else f"{row.random_baseline:.3g}"
        size = f"{len(row.tasks)} tasks" if row.tasks else f"{row.num_documents}"
        cells = [
            row.title,
            _language(row, comparison),
            f"{row.metric} {_ARROWS[row.direction]}",
            size,
            chance,
        ]
        cells.append(number(row.base, row))
        for label in labels:
            cells += _markdown_cells(row, row.models[label])
        lines.append("| " + " | ".join(map(_escaped, cells)) + " |")
    return lines


def _markdown_cells(row: Row, compared: Compared) -> list[str]:
    found = compared.estimate
    half = "" if found.half_width is None else f" ± {number(found.half_width, row)}"
    if found.p is None or compared.p_holm is None:
        both = "–"
    else:
        both = f"{probability(found.p)}, {probability(compared.p_holm)}"
    return [f"{signed(found.difference, row)}{half}", both, compared.verdict]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
