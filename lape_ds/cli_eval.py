"""`lape-ds eval`: after a training, what it has gained and lost.

Beside cli.py, which has the other commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lape_ds.cli_arguments import listed


def add_eval_commands(app: typer.Typer) -> None:
    """Adds them to the app."""
    app.command("eval")(evaluate)
    app.command("suites")(suites)


def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE|RUN|MODEL... [KEY=VALUE]...",
            help="What to measure side by side.",
            show_default=False,
        ),
    ],
    suite: Annotated[str | None, typer.Option(help="Name or path; the recipe's if not given.")] = None,
    languages: Annotated[
        str | None, typer.Option(help="Comma-separated; the target and two more if not given.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where results go.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Documents at a time.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents per task.")] = None,
) -> None:
    """Run lm-eval over the base and the trained models, side by side.

    Example: lape-ds eval recipes/quickstart.yaml --languages mlt,eng
    """
    from lape_ds.evaluation.command import evaluate_command

    overrides = [text for text in targets if "=" in text and not Path(text).exists()]
    evaluate_command(
        [text for text in targets if text not in overrides],
        overrides=overrides,
        suite=suite,
        languages=listed(languages),
        output_dir=output,
        batch_size=batch_size,
        limit=limit,
    )


def suites(
    name: Annotated[
        str | None, typer.Argument(help="Name or path; all shipped ones if not given.", show_default=False)
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(help="Comma-separated; which tasks there are in each, what is left out and why."),
    ] = None,
) -> None:
    """List the suites, or the tasks of one and the languages that they have.

    Example: lape-ds suites monolingual --languages mlt,cym
    """
    from lape_ds.evaluation.listing import list_languages, list_suites, list_tasks
    from lape_ds.evaluation.suites import load_suite

    if name is None:
        lines = list_suites()
    elif languages is None:
        lines = list_tasks(load_suite(name))
    else:
        lines = list_languages(load_suite(name), listed(languages))
    for line in lines:
        typer.echo(line)
