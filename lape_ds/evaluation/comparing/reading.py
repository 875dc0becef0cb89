"""Results and samples that `lape-ds eval` has kept, of the models that the user names.

First of the comparison: from names to folders, and from files to values of documents. A folder of results holds
`<task>.json` and `samples/<task>.jsonl` of one model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lape_ds.errors import UserError
from lape_ds.evaluation.results import TaskResult, read_result
from lape_ds.recipe import load_recipe

HASHES = ("doc_hash", "prompt_hash", "target_hash")  # of the document, the first prompt, the right answer


@dataclass(frozen=True)
class Samples:
    """The documents of one task as one model has answered them.

    Attributes:
        hashes: Name of a hash -> one per document, in order.
        values: Of the metric that the suite reads, per document as the harness keeps it.
    """

    hashes: dict[str, list[str]]
    values: list[Any]


def result_folders(targets: Sequence[str]) -> dict[str, Path]:
    """Label -> folder of results, of all that is named; the first is what the others are compared with.

    Args:
        targets: Folders of results, folders that hold such (`base` comes first), run folders or recipes (whose base
            comes first too).

    Raises:
        UserError: Something named has no results, or fewer than two models are named.
    """
    found = dict.fromkeys(folder.resolve() for target in targets for folder in _folders(target))
    labelled: dict[str, Path] = {}
    for folder in found:
        label = folder.name
        for parent in folder.parents:
            if label not in labelled:
                break
            label = f"{parent.name}-{label}"
        labelled[label] = folder
    if len(labelled) < 2:
        named = ", ".join(labelled) or "none"
        raise UserError(
            f"a comparison needs the results of two models, and finds {named}: name a base and another"
        )
    return labelled


def _folders(target: str) -> list[Path]:
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return _measured(load_recipe(path).output_dir / "eval", target)
    if (path / "recipe.yaml").is_file():
        measured = load_recipe(path / "recipe.yaml").output_dir / "eval"
        both = [measured / "base", measured / path.resolve().name]
        for folder in both:
            if not _is_measured(folder):
                raise UserError(f"no results in {folder}: run `lape-ds eval {target}` first")
        return both
    return [path] if _is_measured(path) else _measured(path, target)


def _measured(folder: Path, target: str) -> list[Path]:
    """The folders of results in a folder, base first and random controls last, as everywhere."""
    found = [path for path in folder.iterdir() if _is_measured(path)] if folder.is_dir() else []
    if not found:
        raise UserError(
            f"{target}: no results in {folder}; name a folder of `lape-ds eval` (such as runs/x/eval/base, or "
            "runs/x/eval for all in it), or a run or recipe that it has measured"
        )
    return sorted(found, key=lambda path: (path.name != "base", path.name.startswith("random"), path.name))


def _is_measured(folder: Path) -> bool:
    return (folder / "samples").is_dir()


def read_results(folder: Path) -> dict[str, TaskResult]:
    """Task -> result, of all that a folder has.

    Raises:
        UserError: A file is no result.
    """
    found = {path.stem: read_result(folder, path.stem) for path in sorted(folder.glob("*.json"))}
    return {task: result for task, result in found.items() if result is not None}


def read_samples(folder: Path, result: TaskResult) -> Samples:
    """The samples behind a result.

    Raises:
        UserError: They are missing, damaged, or not as many as the result has documents.
    """
    path = folder / "samples" / f"{result.task}.jsonl"
    mend = f"delete {folder / result.task}.json and run `lape-ds eval` again"
    metric, _, wanted = result.metric.partition(",")  # `exact_match,strict-match`: read by this filter
    hashes: dict[str, list[str]] = {name: [] for name in HASHES}
    values, documents = [], set()
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    sample = json.loads(line)
                    wanted = wanted or sample["filter"]  # the first, which a plain name means
                    if sample["filter"] != wanted:
                        continue
                    values.append(sample[metric])
                    documents.add(sample["doc_id"])
                    for name in HASHES:
                        hashes[name].append(sample[name])
                except (ValueError, KeyError, TypeError) as error:
                    what = f"no {error}" if isinstance(error, KeyError) else "cut off, or no sample"
                    raise UserError(f"{path}:{number} is damaged ({what}): {mend}") from None
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {mend}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged (no UTF-8): {mend}") from None
    if not len(values) == len(documents) == result.num_documents:
        raise UserError(
            f"{path} has {len(values)} samples of {len(documents)} documents, the result {result.num_documents}: {mend}"
        )
    return Samples(hashes, values)
