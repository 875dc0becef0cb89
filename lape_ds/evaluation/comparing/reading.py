"""Results and samples that `lape-ds eval` has kept, of the models that the user names.

First of the comparison: from names to folders, and from files to values of documents. A folder of results holds
`<task>.json` and `samples/<task>.jsonl` of one model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lape_ds.errors import UserError
from lape_ds.evaluation.naming import free_label, model_place, pack_place, run_place
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
            comes first too), and beside these packs and models that were measured with them.

    Raises:
        UserError: Something named has no results, or fewer than two models are named.
    """
    named = _Named(targets)
    found = dict.fromkeys(folder.resolve() for target in targets for folder in named.folders(target))
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


class _Named:
    """The folders of what is named, by the labels that `lape-ds eval` gives to the same names."""

    def __init__(self, targets: Sequence[str]) -> None:
        self._labels: dict[str, str] = {}  # label -> what has it
        paths = (_recipe_path(Path(target)) for target in targets)
        first = next((path for path in paths if path is not None), None)
        self._shared = None if first is None else load_recipe(first).output_dir / "eval"

    def folders(self, target: str) -> list[Path]:
        """Of one target.

        Raises:
            UserError: It has no results.
        """
        path = Path(target)
        recipe = _recipe_path(path)
        if recipe == path:
            return _measured(load_recipe(path).output_dir / "eval", target)
        if recipe is not None:
            return self._of_run(path, recipe, target)
        if _is_measured(path):
            return [path]
        if path.suffix == ".safetensors":
            return self._beside_recipe(["base", self._label(pack_place(path))], target)
        if self._shared is None or _in_order(path):
            return _measured(path, target)
        return self._beside_recipe([self._label(model_place(target))], target)

    def _of_run(self, run_dir: Path, recipe: Path, target: str) -> list[Path]:
        """Where the first recipe's results are, or by itself in its own recipe's."""
        loaded = load_recipe(recipe)
        own = loaded.output_dir / "eval"
        model = loaded.model
        base = self._label(Path(model.path), "base", f"{model.path}@{model.revision}")
        named = [(self._shared or own) / label for label in (base, self._label(run_place(run_dir)))]
        for both in (named, [own / "base", own / run_dir.resolve().name]):
            if all(map(_is_measured, both)):
                return both
        raise _nothing_in(next(folder for folder in named if not _is_measured(folder)), target)

    def _beside_recipe(self, labels: Sequence[str], target: str) -> list[Path]:
        if self._shared is None:
            raise UserError(
                f"{target} does not say where its results are: name the folder that `lape-ds eval --output` wrote"
            )
        found = [self._shared / label for label in labels]
        for folder in found:
            if not _is_measured(folder):
                raise _nothing_in(folder, target)
        return found

    def _label(self, place: Path, own: str | None = None, key: str | None = None) -> str:
        own, key = own or place.name, key or str(place)
        known = next((label for label, named in self._labels.items() if named == key), None)
        label = known or free_label(own, place, self._labels)
        self._labels[label] = key
        return label


def _recipe_path(path: Path) -> Path | None:
    """The recipe that a target is, or that its run folder has."""
    if path.suffix in (".yaml", ".yml"):
        return path
    return path / "recipe.yaml" if (path / "recipe.yaml").is_file() else None


def _nothing_in(folder: Path, target: str) -> UserError:
    there = [path.name for path in _in_order(folder.parent)]
    has = f"{folder.parent} has {', '.join(there) or 'none'}"
    return UserError(f"no results in {folder} ({has}): run `lape-ds eval {target}` first")


def _measured(folder: Path, target: str) -> list[Path]:
    found = _in_order(folder)
    if not found:
        raise UserError(
            f"{target}: no results in {folder}; name a folder of `lape-ds eval` (such as runs/x/eval/base, or "
            "runs/x/eval for all in it), or a run or recipe that it has measured"
        )
    return found


def _in_order(folder: Path) -> list[Path]:
    """The folders of results in a folder, base first and random controls last, as everywhere."""
    found = [path for path in folder.iterdir() if _is_measured(path)] if folder.is_dir() else []
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


def trained_languages(folders: Iterable[Path]) -> frozenset[str]:
    """What the runs behind some folders of results have trained, by the recipes beside them (`train/<label>/recipe.yaml`).

    Args:
        folders: `<output_dir>/eval/<label>` of runs; others tell nothing.

    Returns:
        Canonical codes; none where no recipe is there, or runs have trained unlike languages.

    Raises:
        UserError: A recipe is not valid.
    """
    recipes = [
        folder.parents[1] / "train" / folder.name / "recipe.yaml" for folder in map(Path.resolve, folders)
    ]
    found = {frozenset(load_recipe(path).trained_languages) for path in recipes if path.is_file()}
    return found.pop() if len(found) == 1 else frozenset()


def read_samples(folder: Path, result: TaskResult) -> Samples:
    """The samples behind a result.

    Raises:
        UserError: They are missing, damaged, or not as many as the result has documents.
    """
    path = folder / "samples" / f"{result.task}.jsonl"
    mend = f"delete {folder / result.task}.json and run `lape-ds eval` again"
    hashes: dict[str, list[str]] = {name: [] for name in HASHES}
    values, documents = [], set()
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    sample = json.loads(line)
                    values.append(sample[result.metric])
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
