"""What a benchmark leaves: a JSON record, and the Markdown table made from it.

Last in the benchmark's way.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch

from lape_ds.bench.tables import markdown
from lape_ds.runlog import surroundings
from lape_ds.writing import write_json, write_text

SCHEMA_VERSION = 1


def new_record(kind: Literal["train", "identify", "select", "pack"], *, measured: bool) -> dict[str, Any]:
    """The head of a record: what was run, when, where.

    Args:
        kind: Of the benchmark.
        measured: False for a plan, which ran nothing.
    """
    found = surroundings()
    hardware = {key: value for key, value in found["hardware"].items() if key != "host"}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": f"bench {kind}",
        "measured": measured,
        "command": " ".join(["lape-ds", *sys.argv[1:]]),
        **found,
        "hardware": hardware | {"threads": torch.get_num_threads()},
    }


def write_record(record: dict[str, Any], out: Path) -> None:
    """Writes the record and, beside it under the same name, its table (`.md`)."""
    write_json(out, record)
    write_text(out.with_suffix(".md"), markdown(record))
