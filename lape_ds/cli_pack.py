"""`lape-ds pack …`: language packs, what a training changed without the rest of the model.

Beside cli.py, which has the other commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def add_pack_commands(app: typer.Typer) -> None:
    """Adds them to the app."""
    pack_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(pack_app, name="pack", help="Make language packs: trained neurons without the rest.")
    # One command of its own name, which typer would else take for the whole of `pack`.
    pack_app.callback()(lambda: None)
    pack_app.command("make")(make_pack)


def make_pack(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(help="The file to write; RUN/pack.safetensors if not given.")
    ] = None,
    checkpoint: Annotated[Literal["best", "last"], typer.Option(help="Which weights.")] = "best",
) -> None:
    """Write the trained neurons of a run as a language pack: with its base, exactly the exported model.

    Example: lape-ds pack make runs/quickstart/train/subnetwork
    """
    from lape_ds.neurons.artefact import read_metadata
    from lape_ds.subnetwork.pack import COMMAND, KIND, SCHEMA_VERSION
    from lape_ds.training.pack_of_run import pack_of_run

    path = output or run / "pack.safetensors"
    if path.exists():  # replaced only if it is one
        read_metadata(path, kind=KIND, schema_version=SCHEMA_VERSION, command=COMMAND)
    pack = pack_of_run(run, checkpoint)
    pack.save(path)
    typer.echo(
        f"{path}: {len(pack.neurons):,} neurons in {len(pack.new)} layers, {pack.num_entries:,} weights of "
        f"{', '.join(pack.languages)} and what {pack.base_model} has there; {path.stat().st_size:,} bytes"
    )
