"""A recipe's whole folder with values that nobody measured, each file written by what writes it for users."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from lape_ds.analysis.neurons.ablation_tables import as_json as ablation_json
from lape_ds.analysis.neurons.specificity import Specificity
from lape_ds.analysis.sweep.report import report_frontier
from lape_ds.evaluation.comparing.command import compare_command
from lape_ds.matrix.table import make_table, write_table
from lape_ds.neurons.stability import measure_stability
from lape_ds.recipe import IdentifySection, Recipe, load_recipe, sweep_runs
from lape_ds.runlog import write_run_json
from lape_ds.writing import write_json
from tests.analysis.neurons.ablations import random_ablation
from tests.evaluation.comparing.written import answers, write_task
from tests.matrix.matrices import hand_matrix, write_all_runs
from tests.neurons.test_selection import CODES, KNOBS, all_counts
from tests.report.made_analyses import write_analyses, write_directions

STEPS = 7
EXPORT = {"step": STEPS, "checkpoint": "of the last step", "num_neurons": 1234}
RECIPE = """
name: made
output_dir: {folder}/made up
languages: {{target: mt, identify: [mt, en, ka, cy]}}
model: {{path: some/base-1B}}
corpus: {{source: {{kind: cldr}}}}
train:
  replay: {{share: 0.25}}
sweep:
  variants:
    - {{method: full, learning_rates: [1e-5, 1e-4]}}
    - {{method: subnetwork, learning_rates: [1e-4, 1e-3]}}
  seeds: [0, 1]
"""


def write_recipe(folder: Path) -> Path:
    path = folder / "made.yaml"
    path.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return path


def write_run(recipe: Recipe, *, gain: float, forgetting: float, trained: int, exported: bool) -> Path:
    """A finished training, measured before, in the middle and at its end."""
    rng = np.random.default_rng(trained)
    folder = recipe.run_dir
    facts: dict[str, Any] = {
        "stage": "train",
        "world_size": 2,
        "trained_parameters": trained,
        "parameters": 1_235_814_400,
        "total_steps": STEPS,
        "identity": {},
        "model_fingerprint": "ab" * 32,
    }
    write_run_json(folder, recipe, facts)
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in _lines(rng, gain, forgetting)), encoding="utf-8"
    )
    if exported:
        write_json(folder / "model" / "lape_ds_export.json", EXPORT)
    return folder


def _lines(rng: np.random.Generator, gain: float, forgetting: float) -> list[dict[str, Any]]:
    before = {"mlt_Latn": 1.9, "eng_Latn": 0.8, "kat_Geor": 1.1, "cym_Latn": 1.4}
    lines: list[dict[str, Any]] = [{"step": 0, "heldout_bits_per_byte": before, "heldout_seconds": 4.1}]
    for step in range(1, STEPS + 1):
        lines.append(
            {
                "step": step,
                "tokens": int(rng.integers(900, 1024)),
                "loss": 3.0 - 0.1 * step + float(rng.normal(0, 0.02)),
                "learning_rate": 1e-4,
                "gradient_norm": float(rng.gamma(2.0)),
                "seconds": 20.0 + float(rng.random()),
                "tokens_per_second": round(48.0 + float(rng.random()), 1),
            }
        )
        if step in (3, STEPS):
            share = step / STEPS
            after = {code: bits + share * forgetting * rng.uniform(0.5, 1.5) for code, bits in before.items()}
            after["mlt_Latn"] = before["mlt_Latn"] - share * gain
            lines.append({"step": step, "heldout_bits_per_byte": after, "heldout_seconds": 4.0})
    return lines


def write_everything(folder: Path) -> Path:
    """Runs, their analyses, evaluation and comparison, a sweep, stability, ablation; returns the recipe."""
    path = write_recipe(folder)
    recipe = load_recipe(path)
    folder = write_run(recipe, gain=0.31, forgetting=0.012, trained=9_437_184, exported=True)
    write_analyses(folder, recipe)
    full = load_recipe(path, ["train.method=full", "train.optimizer.learning_rate=1e-5"])
    folder = write_run(full, gain=0.44, forgetting=0.09, trained=1_235_814_400, exported=False)
    write_analyses(folder, full)
    write_directions(recipe.output_dir / "train" / "analysis", ["subnetwork", "full"], STEPS)
    _write_sweep(recipe)
    _write_evaluation(recipe.output_dir)
    write_json(recipe.identify_dir / "stability.json", _stability())
    ablation = random_ablation(CODES, num_documents=20)
    write_json(
        recipe.output_dir / "ablation" / "ablation.json",
        ablation_json(ablation, Specificity.of(ablation, num_resamples=200)),
    )
    return path


def _write_sweep(recipe: Recipe) -> None:
    for run in sweep_runs(recipe):
        harsh = run.learning_rate / (1e-4 if run.variant == "full" else 1e-3)
        write_run(
            run.recipe,
            gain=0.1 + 0.4 * harsh + 0.01 * run.seed,
            forgetting=0.01 + 0.2 * harsh,
            trained=1_235_814_400 if run.variant == "full" else 9_437_184,
            exported=False,
        )
    report_frontier(recipe)


def _write_evaluation(output_dir: Path) -> None:
    folders = [output_dir / "eval" / label for label in ("base", "full", "subnetwork")]
    for number, folder in enumerate(folders):
        for language in ("mlt_Latn", "eng_Latn"):
            write_task(
                folder,
                answers(120, right=0.4 + 0.2 * number * (language == "mlt_Latn"), seed=number),
                language=language,
                suites=["own"],
            )
    compare_command([str(folder) for folder in folders], json_file=output_dir / "eval" / "comparison.json")


def _stability() -> dict[str, Any]:
    section = IdentifySection(**KNOBS, bootstrap_resamples=4)  # pyright: ignore[reportArgumentType]
    return measure_stability(section, all_counts, seed=0).as_json()


def write_matrix(folder: Path) -> Path:
    """A matrix whose last language lacks a run; returns its folder."""
    matrix = hand_matrix(folder)
    write_all_runs(matrix)
    shutil.rmtree(matrix.languages[-1].runs[-1].run_dir)
    return write_table(make_table(matrix))
