"""`lape-ds compare`: from what the user names to the tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lape_ds.evaluation.comparing.comparison import Comparison, compare
from lape_ds.evaluation.comparing.reading import result_folders
from lape_ds.evaluation.comparing.records import as_csv, as_json
from lape_ds.evaluation.comparing.tables import markdown, show
from lape_ds.writing import write_json, write_text


def compare_command(
    targets: Sequence[str],
    *,
    markdown_file: Path | None = None,
    csv_file: Path | None = None,
    json_file: Path | None = None,
) -> Comparison:
    """Prints the comparison, and writes what is asked for.

    Args:
        targets: Folders of results, folders that hold such, run folders or recipes; the first one's first model is the base.
        markdown_file: Gets the tables.
        csv_file: Gets a line for every task and model.
        json_file: Gets everything.

    Raises:
        UserError: There is nothing to compare, or it was not measured alike.
    """
    comparison = compare(result_folders(targets))
    show(comparison)
    command = " ".join(["lape-ds", *sys.argv[1:]])
    if markdown_file is not None:
        write_text(markdown_file, markdown(comparison, command=command))
    if csv_file is not None:
        write_text(csv_file, as_csv(comparison))
    if json_file is not None:
        write_json(json_file, as_json(comparison, command=command))
    return comparison
