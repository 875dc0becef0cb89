"""Where a task's documents come from: a data set of the hub, or a local folder or file in its place.

In the evaluation room, before the document functions and `tasks.py`. A local copy is a folder in the hub's layout (what
`hf download --repo-type dataset` writes), a folder of files named by config and split (`devtest/mlt_Latn.parquet`), or one
file, which is then every split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict

from lape_ds.corpora.hub import explained
from lape_ds.errors import UserError
from lape_ds.evaluation.hub_access import ask_hub

# Suffix -> the loader of `datasets`; the FLORES+ release names its files `devtest.mlt_Latn`, a sentence a line.
_LOADERS = {
    ".parquet": "parquet",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}


def load_splits(dataset: str, config: str, splits: Sequence[str], *, task: str) -> DatasetDict:
    """Reads some splits of a data set.

    Args:
        dataset: Id on the hub, or a local folder or file.
        config: Of the data set.
        splits: Names of those that are needed.
        task: What an error begins with.

    Raises:
        UserError: In one line: no such data set, config or split, gated, unreachable, or its files are broken.
    """
    where = f"task {task}"
    arguments: dict[str, Any] = {"path": dataset, "name": config}
    if is_local(dataset):
        arguments = local_arguments(dataset, config, splits, where=where)
    else:
        ask_hub()
    with explained(f"{dataset} ({config})", key=where):
        loaded = datasets.load_dataset(**arguments)
    assert isinstance(loaded, DatasetDict)
    lacking = [split for split in splits if split not in loaded]
    if lacking:
        raise UserError(
            f"{where}: data set {dataset} ({config}) has no split {lacking[0]!r} but {', '.join(map(str, loaded))}: "
            "name the language under the task's `left_out`"
        )
    return loaded


def is_local(dataset: str) -> bool:
    """Whether a data set's name is a path: ids on the hub are `owner/name`, and a path of that form must be there."""
    return Path(dataset).expanduser().exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", dataset)


def local_arguments(dataset: str, config: str | None, splits: Sequence[str], *, where: str) -> dict[str, Any]:
    """What `datasets.load_dataset` takes to read a local copy; its paths hold in any working directory.

    Args:
        dataset: A folder or file.
        config: Of the data set; None where it has one alone.
        splits: Names of those that are needed.
        where: What an error begins with.

    Raises:
        UserError: There is no such folder or file, or it is of an unknown format.
    """
    path = local_path(dataset, where=where)
    if path.is_file():
        return _files({split: [path] for split in splits}, where=where)
    if (path / "README.md").is_file():  # whose header lists the configs
        return {"path": str(path), "name": config}
    found = {split: _named(path, config, split) for split in splits}
    for split, files in found.items():
        if not files:
            named = split if config is None else f"{config} and {split}"
            raise UserError(
                f"{where}: no file under {dataset} is named by {named}, and no README.md lists its configs: "
                f"download the whole data set, or name files as {split}/{config or 'data'}.parquet"
            )
    return _files(found, where=where)


def local_path(dataset: str, *, where: str) -> Path:
    """The absolute path of a local copy.

    Args:
        dataset: A folder or file.
        where: What an error begins with.

    Raises:
        UserError: It is not there.
    """
    path = Path(dataset).expanduser().resolve()
    if not path.exists():
        raise UserError(
            f"{where}: no folder or file {dataset} (from `eval.datasets` or the task's `dataset`)"
        )
    return path


def _named(folder: Path, config: str | None, split: str) -> list[Path]:
    """Files under `folder` whose path names the config and the split: `devtest/mlt_Latn.parquet`, `mlt_Latn/test-0.jsonl`."""
    found = []
    for path in sorted(folder.rglob("*")):
        words = re.split(r"[/.]", path.relative_to(folder).as_posix())
        of_split = any(word == split or word.startswith(f"{split}-") for word in words)
        if path.is_file() and of_split and (config is None or config in words):
            found.append(path)
    return found


def _files(found: dict[str, list[Path]], *, where: str) -> dict[str, Any]:
    suffixes = sorted({path.suffix for paths in found.values() for path in paths})
    loaders = {_LOADERS.get(suffix, "text" if "_" in suffix else "") for suffix in suffixes}
    if len(loaders) > 1 or "" in loaders:
        raise UserError(
            f"{where}: cannot read files that end in {', '.join(suffixes)}: give {', '.join(_LOADERS)}, of one kind"
        )
    loader = loaders.pop()
    options = {"delimiter": "\t"} if ".tsv" in suffixes else {}
    return {
        "path": loader,
        "data_files": {split: [str(path) for path in paths] for split, paths in found.items()},
    } | options


def only_columns(data: Dataset, columns: Sequence[str], *, name: str, task: str) -> Dataset:
    """Checks that a data set has the columns that a task reads.

    Raises:
        UserError: It lacks one.
    """
    for column in columns:
        if column not in data.column_names:
            raise UserError(
                f"task {task}: {name} has no column {column!r} but {', '.join(data.column_names)}"
            )
    return data
