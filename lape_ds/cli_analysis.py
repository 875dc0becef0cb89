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
    parallel: Annotated[
        str | None,
        typer.Option(
            metavar="FILES",
            help="Parallel sentences of your own for the alignment, in one order in every language: e.g. 'text/{code}.txt' (a "
            "sentence a line), .jsonl or .parquet (column text). Not given: CLDR records for a recipe of CLDR text, else FLORES+ "
            "dev.",
        ),
    ] = None,
    sentences: Annotated[
        int | None, typer.Option(min=2, help="Parallel sentences in each language; 300 if not given.")
    ] = None,
) -> None:
    """What training did: its course, the weights' change, alignment across languages, activations, neuron overlap.

    Each analysis of a run is written to RUN/analysis as JSON, parquet, SVG and PNG. Several runs are also shown side by side.

    Example: lape-ds analyze runs/quickstart/train/subnetwork --only dynamics,updates
    """
    from lape_ds.analysis.alignment.numbers import ParallelRequest
    from lape_ds.analysis.analyze import analyze

    request = None
    if parallel is not None or sentences is not None:
        request = ParallelRequest(parallel, sentences or ParallelRequest.num_sentences)
    folders = [run_folder(run, None) for run in runs]
    analyze(folders, only=listed(only), output=output, parallel=request)
