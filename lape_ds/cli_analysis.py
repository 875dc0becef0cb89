"""`lape-ds analyze`: what a training did, beside its scores.

Beside cli.py, which has the other commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lape_ds.cli_arguments import listed, run_folder


def add_analysis_commands(app: typer.Typer) -> None:
    """Adds it to the app."""
    app.command("analyze")(analyze_runs)


def analyze_runs(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders or recipes.", show_default=False)
    ],
    only: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: dynamics, updates, alignment, activations, overlap; all that can be made if not given."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the joint tables and pictures of several runs go; analysis/ in their common folder if not given.",
        ),
    ] = None,
) -> None:
    """What training did: its course, the weights' change, alignment across languages, activations, neuron overlap.

    Each analysis of a run is written to RUN/analysis as JSON, parquet, SVG and PNG. Several runs are also shown side by side.

    Example: lape-ds analyze runs/quickstart/train/subnetwork --only dynamics,updates
    """
    from lape_ds.analysis.analyze import analyze

    analyze([run_folder(run, None) for run in runs], only=listed(only), output=output)
