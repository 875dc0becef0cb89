"""What `lape-ds suites` shows: the shipped suites, the tasks of one, and what there is in a language.

Beside the table of results; needs neither torch nor the harness. Plain lines, for a terminal that is too narrow may not cut a
name that is to be copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lape_ds.evaluation.suites import Suite, left_out, load_suite, suite_names
from lape_ds.languages import all_languages, find_language

_ARROWS = {"higher": "↑", "lower": "↓"}


def list_suites() -> Iterator[str]:
    """The shipped suites: how many tasks each has, and which languages it is for if none are named."""
    rows = [["suite", "tasks", "languages"]]
    for name in suite_names():
        suite = load_suite(name)
        whom = suite.languages if isinstance(suite.languages, str) else ", ".join(suite.languages)
        rows.append([name, str(len(suite.tasks)), whom])
    return _aligned(rows)


def list_tasks(suite: Suite) -> Iterator[str]:
    """A suite's tasks: metric, examples, chance, in how many languages of the table, and what the harness calls them."""
    rows = [["task", "metric", "examples", "chance", "languages", "of the harness"]]
    every = [language.code for language in all_languages()]
    lacking = left_out(suite, every)
    for title, spec in suite.tasks.items():
        chance = "–" if spec.random_baseline is None else f"{spec.random_baseline:.3f}"
        examples = "its own" if spec.num_fewshot is None else str(spec.num_fewshot)
        num_languages = str(len(every) - sum(one.title == title for one in lacking))
        rows.append(
            [title, f"{spec.metric} {_ARROWS[spec.direction]}", examples, chance, num_languages, spec.task]
        )
    return _aligned(rows)


def list_languages(suite: Suite, languages: Sequence[str]) -> Iterator[str]:
    """For each language one line of what is measured and how many that is, and one for each reason to leave something out.

    Args:
        suite: Its tasks.
        languages: Any name or code of each language.

    Raises:
        UserError: Unknown language.
    """
    for language in dict.fromkeys(map(find_language, languages)):
        reasons: dict[str, list[str]] = {}
        lacking = left_out(suite, [language.code])
        for one in lacking:
            reasons.setdefault(one.reason, []).append(one.title)
        titles = [title for title in suite.tasks if title not in [one.title for one in lacking]]
        yield f"{language.name} ({language.code}), {len(titles)} tasks: {', '.join(titles) or 'none'}"
        for reason, without in reasons.items():
            yield f"  left out, {reason}: {', '.join(without)}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
