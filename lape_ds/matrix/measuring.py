"""What is measured of a language's tuned runs, and what came of it: between running and the folders of `lape-ds eval`.

Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from lape_ds import __version__
from lape_ds.evaluation.suites import suite_sha256
from lape_ds.recipe import Matrix, MatrixLanguage, MatrixModel

BASE = "base"
_PACKAGES = ("lm-eval", "transformers")  # whose versions results are of, too


def measurement_of(matrix: Matrix, model: MatrixModel) -> str | None:
    """Hash of all that the matrix says of how its runs are measured; None where they are not.

    It changes with the suites' text, the number of documents, precision and versions: runs that were measured another way are
    measured again. What a task of the harness's own is made of, it does not see; results do.

    Args:
        matrix: As loaded.
        model: One of its models.

    Raises:
        UserError: A suite is not there.
    """
    section = matrix.section.eval
    if section is None:
        return None
    said = {
        "suites": [suite_sha256(name) for name in section.suites],
        "limit": section.limit,
        "datasets": section.datasets,
        "backend": section.backend,
        "dtype": model.recipe.model.dtype,
        "attn_implementation": model.recipe.model.attn_implementation,
        "versions": {name: version(name) for name in _PACKAGES} | {"lape-ds": __version__},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def results_folder(language: MatrixLanguage) -> Path:
    """Where `lape-ds eval` keeps what it finds, a folder for each model."""
    return language.folder / "eval"


def forget_errors(language: MatrixLanguage, labels: Sequence[str]) -> None:
    """Before measuring: errors that are there afterwards are then of this time."""
    for label in (BASE, *labels):
        for path in _errors(language, label):
            path.unlink()


def failed_models(language: MatrixLanguage, labels: Sequence[str], *, reason: str) -> Mapping[str, str]:
    """Label -> why, of the models that a failed evaluation has not wholly measured.

    Args:
        language: Whose.
        labels: Of the models beside the base.
        reason: What the evaluation as a whole has said.

    Returns:
        All of them where the base has failed too, or where no model has an error of its own: a task could not be had.
    """
    own = {label: _errors(language, label) for label in labels}
    if _errors(language, BASE) or not any(own.values()):
        return dict.fromkeys(labels, reason)
    return {
        label: f"{', '.join(path.stem for path in found)} failed (why: {found[0].parent})"
        for label, found in own.items()
        if found
    }


def _errors(language: MatrixLanguage, label: str) -> list[Path]:
    return sorted((results_folder(language) / label / "errors").glob("*.txt"))
