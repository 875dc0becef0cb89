"""`lape-ds eval` and `lape-ds compare`: after a training, what it has gained and lost.

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
    app.command("compare")(compare)


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


def compare(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE RUN...",
            help="Folders that `lape-ds eval` has written, or runs or recipes that it has measured; the first is the base.",
            show_default=False,
        ),
    ],
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables.")] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a line for every task and model.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything.")] = None,
) -> None:
    """What models gained and lost against a base: paired differences with intervals, from the samples of `lape-ds eval`.

    Example: lape-ds compare runs/quickstart/eval/base runs/quickstart/eval/subnetwork --markdown compared.md
    """
    from lape_ds.evaluation.comparing.command import compare_command

    compare_command(targets, markdown_file=markdown, csv_file=csv, json_file=json)
