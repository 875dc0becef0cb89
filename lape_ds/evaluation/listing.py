"""What `lape-ds suites` shows: the shipped suites, the tasks of one, and what there is in a language.

Beside the table of results; needs neither torch nor the harness.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from lape_ds.evaluation.suites import Suite, left_out, load_suite, plan, suite_names
from lape_ds.languages import all_languages, find_language

_ARROWS = {"higher": "↑", "lower": "↓"}


def suites_table() -> Table:
    """The shipped suites: how many tasks each has, and which languages it is for if none are named."""
    table = Table(box=None, pad_edge=False)
    for heading in ("suite", "tasks", "languages"):
        table.add_column(heading, no_wrap=True)
    for name in suite_names():
        suite = load_suite(name)
        whom = suite.languages if isinstance(suite.languages, str) else ", ".join(suite.languages)
        table.add_row(name, str(len(suite.tasks)), whom)
    return table


def suite_table(suite: Suite) -> Table:
    """A suite's tasks: what the harness calls them, examples, metric, chance, and in how many languages of the table they are."""
    table = Table(box=None, pad_edge=False)
    for heading in ("task", "of the harness", "examples", "metric", "chance", "languages"):
        table.add_column(heading, no_wrap=True, justify="right" if heading in ("examples", "chance") else "left")
    every = [language.code for language in all_languages()]
    lacking = left_out(suite, every)
    for title, spec in suite.tasks.items():
        chance = "–" if spec.random_baseline is None else f"{spec.random_baseline:.3f}"
        num_languages = len(every) - sum(one.title == title for one in lacking)
        examples = "own" if spec.num_fewshot is None else str(spec.num_fewshot)
        metric = f"{spec.metric} {_ARROWS[spec.direction]}"
        table.add_row(title, spec.task, examples, metric, chance, str(num_languages))
    return table


def tasks_of_languages(suite: Suite, languages: Sequence[str]) -> Iterator[str]:
    """For each language one line of what is measured and how many that is, and one for each reason to leave something out.

    Args:
        suite: Its tasks.
        languages: Any name or code of each language.

    Raises:
        UserError: Unknown language, or the suite has no task for one.
    """
    for language in dict.fromkeys(map(find_language, languages)):
        planned = plan(suite, [language.code])
        yield f"{language.name} ({language.code}), {len(planned)} tasks: {', '.join(one.title for one in planned)}"
        reasons: dict[str, list[str]] = {}
        for one in left_out(suite, [language.code]):
            reasons.setdefault(one.reason, []).append(one.title)
        for reason, titles in reasons.items():
            yield f"  left out, {reason}: {', '.join(titles)}"
