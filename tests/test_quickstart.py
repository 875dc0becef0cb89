"""The quickstart as a user runs it: interrupted in the middle of its pre-training, run again to its end, and once more.

`launch/quickstart.sh` with a miniature recipe: three languages, a model of two layers of 48 neurons, two ranks.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.training.metrics import read_metrics
from tests.processes import REPO

PRETRAINING_STEPS = 60  # a second: time enough to be interrupted in
RECIPE = f"""
name: miniature
output_dir: {{folder}}/out
languages: {{{{target: mt, identify: [mt, en, ka]}}}}
model:
  path: {{folder}}/out/base
  dtype: float32
  create:
    vocab_size: 600
    tokenizer_documents_per_language: 200
    llama:
      hidden_size: 32
      intermediate_size: 48
      num_hidden_layers: 2
      num_attention_heads: 2
      num_key_value_heads: 2
      max_position_embeddings: 128
    pretrain:
      run_name: pretrain
      method: full
      weights: {{{{mt: 0.1}}}}
      max_steps: {PRETRAINING_STEPS}
      block_length: 64
      micro_batch_size: 2
      optimizer: {{{{learning_rate: 2e-3}}}}
      heldout: {{{{every_steps: {PRETRAINING_STEPS}, tokens_per_language: 200}}}}
      checkpoint_every_steps: {PRETRAINING_STEPS}
corpus:
  source: {{{{kind: cldr, records: 800}}}}
  heldout_share: 0.2
identify:
  tokens_per_language: 4000
  context_length: 64
  batch_size: 8
  top_rate: 0.5
  filter_rate: 0.5
  activation_bar_ratio: 0.5
train:
  max_steps: 4
  block_length: 64
  micro_batch_size: 2
  optimizer: {{{{learning_rate: 1e-2}}}}
  heldout: {{{{every_steps: 4, languages: [en, ka], tokens_per_language: 200}}}}
  checkpoint_every_steps: 4
launch: {{{{num_ranks: 2}}}}
eval: {{{{limit: 2}}}}
"""


@dataclass(frozen=True)
class Quickstart:
    """What one user did, one after the other."""

    recipe: Path
    out: Path
    interrupted_at: int  # step of the pre-training
    exit_code_interrupted: int
    base_after_interruption: bool
    printed: str  # by the run that went on


def start(recipe: Path, log: Path) -> subprocess.Popen[bytes]:
    # As `make quickstart`: the environment's commands first on the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
    command = [str(REPO / "launch" / "quickstart.sh"), str(recipe)]
    with log.open("wb") as output:
        return subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)


def run_to_the_end(recipe: Path, log: Path) -> str:
    assert start(recipe, log).wait(timeout=500) == 0, log.read_text()[-4000:]
    return log.read_text()


def interrupt(recipe: Path, log: Path, metrics: Path) -> int:
    """Sends SIGTERM in the pre-training to the whole group, as Ctrl-C would; returns the shell's exit code."""
    process = start(recipe, log)
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"loss"' in metrics.read_text()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGTERM)
    code = process.wait(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, "ranks were left behind"
    return code


def steps_of(metrics: Path) -> list[int]:
    return [line["step"] for line in read_metrics(metrics) if "loss" in line]


def outputs(folder: Path) -> dict[Path, Any]:
    """What the files say, but for locks (who came last): safetensors keep no order of metadata, run.json holds the date."""
    return {path: _content(path) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata()
    if path.name == "run.json":
        return json.loads(path.read_text(encoding="utf-8")) | {"date": None}
    return path.read_bytes()


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Quickstart:
    folder = tmp_path_factory.mktemp("quickstart")
    recipe, out = folder / "miniature.yaml", folder / "out"
    recipe.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    metrics = out / "pretrain" / "train" / "pretrain" / "metrics.jsonl"
    code = interrupt(recipe, folder / "first.log", metrics)
    interrupted_at, base_there = steps_of(metrics)[-1], (out / "base").exists()
    printed = run_to_the_end(recipe, folder / "second.log")
    return Quickstart(recipe, out, interrupted_at, code, base_there, printed)


def test_interrupted_pretraining_goes_on(quickstart: Quickstart) -> None:
    assert quickstart.exit_code_interrupted != 0
    assert 0 < quickstart.interrupted_at < PRETRAINING_STEPS, "not interrupted in the middle"
    assert not quickstart.base_after_interruption, "half a pre-training was taken for a model"
    going_on = f"going on from step {quickstart.interrupted_at} of {PRETRAINING_STEPS}"
    assert going_on in quickstart.printed
    metrics = quickstart.out / "pretrain" / "train" / "pretrain" / "metrics.jsonl"
    assert steps_of(metrics) == list(range(1, PRETRAINING_STEPS + 1))


def test_every_stage_leaves_its_output(quickstart: Quickstart) -> None:
    out = quickstart.out
    assert NeuronSet.load(out / "identify" / "neurons.safetensors").num_neurons("mlt_Latn") > 0
    counts = sorted(path.stem for path in (out / "identify" / "counts").iterdir())
    assert counts == ["eng_Latn", "kat_Geor", "mlt_Latn"]
    for run in ("subnetwork", "random-seed0"):
        assert steps_of(out / "train" / run / "metrics.jsonl") == [1, 2, 3, 4]
        exported = json.loads((out / "train" / run / "model" / "lape_ds_export.json").read_text())
        assert 0 < exported["changed"] <= exported["trained"] < exported["total"]
    measured = {path.name for path in (out / "eval").iterdir()}
    assert {"base", "subnetwork", "random-seed0"} <= measured


def test_its_models_load(quickstart: Quickstart) -> None:
    for folder in (quickstart.out / "base", quickstart.out / "train" / "subnetwork" / "model"):
        ids = AutoTokenizer.from_pretrained(folder)("Il-Ħadd", return_tensors="pt").input_ids
        with torch.no_grad():
            assert AutoModelForCausalLM.from_pretrained(folder)(ids).logits.isfinite().all()


def test_closing_table(quickstart: Quickstart) -> None:
    """The target, the others, what was trained, and where: as run.json and the export say."""
    table = quickstart.printed[
        quickstart.printed.rindex("Held-out text of the recipe's own corpus, bits per byte") :
    ]
    number = r"\d+\.\d{4}"
    change = rf"[^\d]+{number}[^\d]+{number}[^\d]+{number}[^\d]+{number}[^\d]+{number}"
    for row in (r"Maltese \(trained\)", "English", "Georgian"):
        assert re.search(rf"{row}{change}", table), table
    assert "mean of 2 others" in table
    for run in ("subnetwork", "random-seed0"):
        folder = quickstart.out / "train" / run
        trained = json.loads((folder / "run.json").read_text())["trained_parameters"]
        neurons = json.loads((folder / "model" / "lape_ds_export.json").read_text())["num_neurons"]
        assert re.search(rf"{run}[^\d]+{neurons}[^\d]+{trained:,}[^\d]+[\d.]+ %[^\d]+4 ", table), table
        assert trained == neurons * 3 * 32  # gate, up and down projection of the hidden size
    assert str(quickstart.out / "train") in "".join(table.split("\n"))
    assert "no evidence about large" in table


@pytest.mark.long
def test_running_again_changes_nothing(quickstart: Quickstart) -> None:
    before = outputs(quickstart.out)
    printed_again = run_to_the_end(quickstart.recipe, quickstart.out.parent / "third.log")
    after = outputs(quickstart.out)
    assert after.keys() == before.keys()
    changed = [path for path, content in after.items() if content != before[path]]
    assert changed == []
    assert "Packing" not in printed_again
    assert "counting" not in printed_again
    tables = (text[text.rindex("Held-out text") :] for text in (quickstart.printed, printed_again))
    assert next(tables) == next(tables)
