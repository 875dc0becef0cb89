"""`lape-ds matrix run | status | table | plan`: models × languages × methods from one file.

Beside cli.py, which has the other commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lape_ds.recipe import Matrix

matrix_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

FileArgument = Annotated[
    str,
    typer.Argument(
        metavar="FILE", help="A matrix file, e.g. recipes/paper/quickstart.yaml.", show_default=False
    ),
]


OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides of the matrix's own keys, e.g. languages=[mt] or, of every recipe, set.train.tokens=1000000.",
        show_default=False,
    ),
]


@matrix_app.command()
def run(
    file: FileArgument,
    overrides: OverridesArgument = None,
    retry: Annotated[bool, typer.Option("--retry", help="Also what has failed.")] = False,
    number: Annotated[
        int | None,
        typer.Option(min=0, help="Only this language of a model, counted from 0: the task of a job array."),
    ] = None,
) -> None:
    """Run every cell that is not finished: pretrain, identify, sweep, tune, export, measure; then the table.

    Finished cells are left alone; one that fails is told, and the others go on (exit code 2 at the end).

    Example: lape-ds matrix run recipes/paper/quickstart.yaml

    On Slurm: sbatch --array=0-35 --gpus-per-node=8 launch/slurm.sbatch --stage matrix recipes/paper/matrix.yaml
    """
    matrix = _load(file, overrides)
    from lape_ds.matrix.running import run_matrix
    from lape_ds.matrix.states import read_cells
    from lape_ds.matrix.status import show_status

    if not any(cell.is_left or (retry and cell.state == "failed") for cell in read_cells(matrix)):
        typer.echo("nothing to do: every cell is finished or has failed")
    busy = run_matrix(matrix, retry=retry, number=number)
    cells = read_cells(matrix)
    show_status(matrix, cells)
    if number is None and any(cell.num_finished for cell in cells):
        _write_table(matrix)
    own = [cell for cell in cells if number is None or _is_of(matrix, number, cell.model, cell.language)]
    if busy or any(cell.state == "failed" for cell in own):
        raise SystemExit(2)


def _is_of(matrix: Matrix, number: int, model: str, code: str) -> bool:
    language = matrix.languages[number]
    return (language.model, language.code) == (model, code)


@matrix_app.command()
def status(file: FileArgument, overrides: OverridesArgument = None) -> None:
    """Tell how far every cell is, why one failed, the time used and about how much is left; also while it runs.

    Example: lape-ds matrix status recipes/paper/quickstart.yaml
    """
    matrix = _load(file, overrides)
    from lape_ds.matrix.states import read_cells
    from lape_ds.matrix.status import show_status

    show_status(matrix, read_cells(matrix))


@matrix_app.command()
def table(file: FileArgument, overrides: OverridesArgument = None) -> None:
    """Write table.md, table.json and the frontiers' pictures from what is finished, and print the means.

    Example: lape-ds matrix table recipes/paper/quickstart.yaml
    """
    _write_table(_load(file, overrides))


@matrix_app.command()
def plan(
    file: FileArgument,
    overrides: OverridesArgument = None,
    gpus: Annotated[
        str | None,
        typer.Option(metavar="1x80GB", help="Of one run; those here if not given.", show_default=False),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything.")
    ] = None,
) -> None:
    """Tell what all trainings would cost, and write each model's and language's recipe; needs no GPU.

    Example: lape-ds matrix plan recipes/paper/matrix.yaml --gpus 1x80GB
    """
    matrix = _load(file, overrides)
    from lape_ds.matrix.planning import plan_matrix
    from lape_ds.matrix.states import check_settings

    check_settings(matrix)
    matrix.write_recipes()
    plan_matrix(matrix, gpus=gpus, json_file=json_file)


def _load(file: str, overrides: list[str] | None) -> Matrix:
    """A matrix, of whose models the environment variables are this process's from now on."""
    from lape_ds.recipe import load_matrix
    from lape_ds.recipe.environment import enter_environment

    matrix = load_matrix(file, overrides or [])
    for model in matrix.models:
        enter_environment(model.recipe.env)
    return matrix


def _write_table(matrix: Matrix) -> None:
    from lape_ds.matrix.table import make_table, show_table, write_table

    made = make_table(matrix)
    folder = write_table(made)
    show_table(made)
    typer.echo(f"every cell: {folder}/table.md, table.json, frontier-*.png")
