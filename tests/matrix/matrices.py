"""A matrix whose runs and results are written by hand: what its tests share."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lape_ds.evaluation.results import Score, TaskResult, write_result
from lape_ds.recipe import Matrix, MatrixLanguage, SweepRun, load_matrix
from lape_ds.recipe.freezing import to_yaml

RECIPE = """
name: hand
output_dir: elsewhere
languages: {target: en, identify: [mt, cy, ka, en]}
model: {path: nowhere}
corpus: {source: {kind: cldr}}
"""
MATRIX = """
name: by-hand
output_dir: {folder}/out
recipes: ["{folder}/hand.yaml"]
languages: [mt, cy, ka]
sweep:
  seeds: [0]
  variants:
    - {{method: subnetwork, learning_rates: [1e-4, 1e-3]}}
    - {{method: random, learning_rates: [1e-4, 1e-3], seeds: [0, 1]}}
    - {{method: full, learning_rates: [1e-5, 1e-4]}}
"""
CODES = ["mlt_Latn", "cym_Latn", "kat_Geor"]
OTHERS = {code: [other for other in [*CODES, "eng_Latn"] if other != code] for code in CODES}


def matrix_file(folder: Path, *, more: str = "") -> Path:
    """Writes both files."""
    (folder / "hand.yaml").write_text(RECIPE, encoding="utf-8")
    path = folder / "matrix.yaml"
    path.write_text(MATRIX.format(folder=folder) + more, encoding="utf-8")
    return path


def hand_matrix(folder: Path, *, more: str = "") -> Matrix:
    """The matrix, loaded."""
    return load_matrix(matrix_file(folder, more=more))


def write_run(run: SweepRun, *, gain: float, forgetting: float, seconds: float = 2.0) -> None:
    """A finished run: the target has gained so much, every other language lost so much."""
    (target,) = run.recipe.trained_languages
    before = dict.fromkeys([target, *OTHERS[target]], 2.0)
    after = {code: 2.0 - gain if code == target else 2.0 + forgetting for code in before}
    lines = [
        {"step": 0, "heldout_bits_per_byte": before},
        {"step": 9, "loss": 1.0, "seconds": seconds},
        {"step": 9, "heldout_bits_per_byte": after, "heldout_seconds": 0.5},
    ]
    write_lines(run, lines)


def write_diverged(run: SweepRun) -> None:
    """A run that has left the finite numbers."""
    write_lines(run, [{"step": 3, "diverged": "step 4: loss is nan"}])


def write_lines(run: SweepRun, lines: Sequence[Mapping[str, Any]]) -> None:
    """A run's folder with these metrics."""
    run.run_dir.mkdir(parents=True, exist_ok=True)
    (run.run_dir / "recipe.yaml").write_text(to_yaml(run.recipe), encoding="utf-8")
    facts = {"total_steps": 9, "model_fingerprint": "base", "trained_parameters": 7, "parameters": 1234}
    (run.run_dir / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run.run_dir / "metrics.jsonl").write_text(text, encoding="utf-8")
    checkpoint = run.run_dir / "checkpoints" / "step-9"
    checkpoint.mkdir(parents=True, exist_ok=True)


def write_all_runs(matrix: Matrix) -> None:
    """Gains 0.1, 0.2, 0.3 by language at gentle rates, twice that at harsh ones; full gains 0.1 more, seed 1 0.02 more."""
    for number, language in enumerate(matrix.languages):
        for run in language.runs:
            harsh = run.learning_rate == max(other.learning_rate for other in language.runs_of(run.variant))
            gain = 0.1 * (number + 1) * (2 if harsh else 1)
            gain += 0.1 if run.variant == "full" else 0.0
            gain += 0.02 * run.seed
            write_run(run, gain=gain, forgetting=0.07 if harsh else -0.01)


def write_bits(
    language: MatrixLanguage, label: str, task_language: str, bits: Sequence[float], *, title: str = "bits"
) -> None:
    """A result of bits per byte over documents of 8 bytes each."""
    task = f"{title}_{task_language}"
    samples = [
        {
            "doc_id": number,
            "doc_hash": f"d{number}",
            "prompt_hash": f"p{number}",
            "target_hash": f"t{number}",
            "bits_per_byte": [-value * 8 * math.log(2), 8],
        }
        for number, value in enumerate(bits)
    ]
    result = TaskResult(
        task=task,
        language=task_language,
        num_documents=len(bits),
        scores={"bits_per_byte": Score(sum(bits) / len(bits), None)},
        requests_sha256="same",
        settings={"model_fingerprint": label},
        title=title,
        metric="bits_per_byte",
        direction="lower",
        random_baseline=None,
        suites=["mine"],
    )
    write_result(language.folder / "eval" / label, result, samples)
