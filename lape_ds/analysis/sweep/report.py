"""What a sweep found: tables on the terminal, a page, a picture and numbers in `<output_dir>/sweep/`.

The last stage of `lape-ds sweep`; can be repeated at any time while the runs go on.
"""

from __future__ import annotations

from rich.console import Console

from lape_ds.analysis.sweep.picture import draw_frontier
from lape_ds.analysis.sweep.results import SweepResults, read_sweep
from lape_ds.analysis.sweep.tables import (
    CAPTION,
    NO_LEVEL,
    LevelTable,
    as_json,
    level_tables,
    markdown,
    rich_table,
)
from lape_ds.recipe import Recipe
from lape_ds.writing import whole_file, write_json, write_text


def report_frontier(recipe: Recipe) -> None:
    """Writes the frontier's files and prints the tables.

    Raises:
        UserError: No run of the sweep is finished, or they do not fit together.
    """
    results, tables = write_frontier(recipe)
    console = Console()
    for table in tables:
        console.print(f"\n[bold]{table.title}[/]", soft_wrap=True)  # above the table, which is narrower
        console.print(rich_table(table) if table.levels else NO_LEVEL)
    console.print(CAPTION)
    for note in results.notes:
        console.print(note)
    where = f"picture, every point and all numbers: {recipe.sweep_dir}/frontier.png, .svg, .md, .json"
    console.print(where, soft_wrap=True, highlight=False)


def write_frontier(recipe: Recipe) -> tuple[SweepResults, list[LevelTable]]:
    """Writes `frontier.md`, `.json`, `.png` and `.svg`.

    Returns:
        What the sweep measured, and its tables.

    Raises:
        UserError: As of `report_frontier`.
    """
    results = read_sweep(recipe)
    tables = level_tables(results)
    folder = recipe.sweep_dir
    for format in ("png", "svg"):
        with whole_file(folder / f"frontier.{format}") as temporary:
            draw_frontier(results, temporary, format=format)
    write_text(folder / "frontier.md", markdown(results, tables))
    write_json(folder / "frontier.json", as_json(results, tables))
    return results, tables
