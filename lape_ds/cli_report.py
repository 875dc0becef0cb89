"""`lape-ds report`: the page that tells of runs.

Beside cli.py, which has the other commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def add_report_command(app: typer.Typer) -> None:
    """Adds it to the app."""
    app.command("report")(report)


def report(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|RECIPE|MATRIX... [KEY=VALUE]...",
            help="What to tell of: run folders, recipes (runs, sweep, ablation) or their output folders, matrix files.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; report.html in the folder that is named.")
    ] = None,
) -> None:
    """Write one HTML page of runs: what was run, what it cost, gained and forgot; every number with its file.

    The page needs no network and no other file. What is not there yet is named with the command that makes it.

    Example: lape-ds report runs/quickstart/train/subnetwork
    """
    overrides = [text for text in targets if "=" in text and not Path(text).exists()]
    from lape_ds.report.page import write_report
    from lape_ds.report.subjects import find_subjects

    subjects = find_subjects([text for text in targets if text not in overrides], overrides)
    typer.echo(str(write_report(subjects, output)))
