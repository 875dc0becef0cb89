"""What every analysis of a run writes, and the report reads back: one JSON, one table, two pictures.

Below the analyses; needs no torch. In `RUN/analysis/`:

    NAME.json            what was analysed, from which files, and the numbers
    NAME.parquet         the same numbers as a long table: one row a point
    NAME.svg, NAME.png   the picture

Of several runs the same four files lie in one folder, with the results of all of them (`runs`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import pyarrow as pa
from pyarrow import parquet

from lape_ds.analysis.training.inputs import Input
from lape_ds.writing import told_if_unwritable, whole_file, write_json

SCHEMA_VERSION = 2  # 2: inputs with the state in which they were read
KIND = "analysis"
ANALYSES = ("dynamics", "updates", "alignment", "activations", "overlap")
FORMATS: tuple[Literal["svg", "png"], ...] = ("svg", "png")

Rows = Sequence[Mapping[str, Any]]  # of a long table: every row has the same keys


@dataclass(frozen=True)
class Subject:
    """Whose result it is.

    Attributes:
        run: The run's folder, as it was given.
        name: What tables and pictures call it.
        method: `train.method`.
        languages: Canonical codes of the trained languages.
        inputs: What was read, and in which state: of which step of the run the result is.
    """

    run: str
    name: str
    method: str
    languages: tuple[str, ...]
    inputs: tuple[Input, ...]

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "run": self.run,
            "name": self.name,
            "method": self.method,
            "languages": list(self.languages),
            "inputs": [one.as_json() for one in self.inputs],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Of what `as_json` gave, among other keys."""
        return cls(
            run=content["run"],
            name=content["name"],
            method=content["method"],
            languages=tuple(content["languages"]),
            inputs=tuple(map(Input.from_json, content["inputs"])),
        )


class Result(Protocol):
    """One analysis of one run: a frozen dataclass whose first field is the subject."""

    @property
    def subject(self) -> Subject:
        """Whose it is."""
        ...

    def as_json(self) -> dict[str, Any]:
        """The numbers, without the subject."""
        ...

    def rows(self) -> Rows:
        """The numbers as a long table."""
        ...


def write_analysis(
    folder: Path,
    name: str,
    results: Sequence[Result],
    draw: Callable[[Path, Literal["svg", "png"]], None],
    *,
    joint: bool = False,
) -> None:
    """Writes an analysis's four files, each whole or not at all.

    Args:
        folder: `RUN/analysis`, or that of several runs.
        name: Of the analysis.
        results: Of one run, or of several.
        draw: Draws their picture into a file.
        joint: They are of several runs, be it only one that had all that was needed.

    Raises:
        UserError: A file cannot be written.
    """
    contents = [result.subject.as_json() | result.as_json() for result in results]
    rows = [{"run": result.subject.name, **row} for result in results for row in result.rows()]
    write_files(folder, name, {"runs": contents} if joint else contents[0], rows, draw)


def write_files(
    folder: Path,
    name: str,
    content: Mapping[str, Any],
    rows: Rows,
    draw: Callable[[Path, Literal["svg", "png"]], None],
) -> None:
    """The same of anything that is told as JSON, table and picture.

    Raises:
        UserError: A file cannot be written.
    """
    with told_if_unwritable(f"the analysis {folder / name}", kept="other files"):
        for format in FORMATS:
            with whole_file(folder / f"{name}.{format}") as temporary:
                draw(temporary, format)
        with whole_file(folder / f"{name}.parquet") as temporary:
            parquet.write_table(pa.Table.from_pylist(list(rows)), temporary)
        # Last: where it is, the others are.
        head = {"kind": KIND, "analysis": name, "schema_version": SCHEMA_VERSION}
        write_json(folder / f"{name}.json", {**head, **content})


def analysis_dir(run_dir: Path) -> Path:
    """Where the analyses of a run lie."""
    return run_dir / "analysis"


def common_parent(run_dirs: Sequence[Path]) -> Path:
    """The nearest folder that holds several runs."""
    return Path(os.path.commonpath([run_dir.resolve().parent for run_dir in run_dirs]))
