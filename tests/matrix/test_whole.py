"""A matrix with its real stages, on the tiny model: from neurons to the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lape_ds.recipe import load_matrix
from lape_ds.training.run_folder import read_finished
from tests.processes import REPO

MATRIX = """
name: whole
output_dir: {folder}/out
recipes: ["{recipe}"]
languages: [mt]
set:
  identify: {{tokens_per_language: 2000, context_length: 32, batch_size: 32, top_rate: 0.5, filter_rate: 0.5,
    activation_bar_ratio: 0.5}}
  train.replay.share: 0.0
  train.replay.languages: []
sweep:
  seeds: [0]
  keep_checkpoints: tuned
  variants:
    - {{method: random, learning_rates: [1e-2], seeds: [0, 1]}}
    - {{method: full, learning_rates: [1e-3, 1e-30]}}
eval: {{suite: {folder}/small.yaml, limit: 12}}
"""
SUITE = """
name: small
languages: few
tasks:
  bits_per_byte:
    {task: cldr_bits_per_byte, metadata: {language: "{code}"}, num_fewshot: 0, metric: bits_per_byte, direction: lower}
"""


@pytest.mark.long
def test_from_neurons_to_table(tiny_recipe: Path, tmp_path: Path) -> None:
    file = tmp_path / "matrix.yaml"
    file.write_text(MATRIX.format(folder=tmp_path, recipe=tiny_recipe), encoding="utf-8")

    (tmp_path / "small.yaml").write_text(SUITE, encoding="utf-8")

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lape_ds.cli", "matrix", "run", str(file)]
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600, check=False)

    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    (language,) = load_matrix(file).languages
    assert all(read_finished(one.run_dir) is not None for one in language.runs)
    kept = [one.label for one in language.runs if (one.run_dir / "checkpoints").exists()]
    assert kept == ["random lr 0.01 seed 0", "full lr 0.001 seed 0", "random lr 0.01 seed 1"]
    content = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
    assert {cell["state"] for cell in content["cells"]} == {"finished"}
    (model,) = content["models"]
    grids = {grid["id"]: grid for grid in model["grids"]}
    assert {
        "heldout-tuned-gain",
        "suite-bits_per_byte-gain",
        "suite-bits_per_byte-forgetting",
    } <= grids.keys()
    ends = [read_finished(one.run_dir) for one in language.runs_of("random")]
    gains = [end.before["mlt_Latn"] - end.after["mlt_Latn"] for end in ends if end is not None]
    random = grids["heldout-tuned-gain"]["rows"][0]["cells"]["mlt_Latn"]
    assert random["value"] == pytest.approx(sum(gains) / 2)
    measured = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json*")}
    again = run()
    assert again.returncode == 0
    assert "lape-ds identify" in done.stderr
    assert "lape-ds identify" not in again.stderr
    for path, changed in measured.items():
        if path.name != "table.json":
            assert path.stat().st_mtime_ns == changed, path
