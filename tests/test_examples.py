"""The two examples as users run them: real processes, through the `deepspeed` launcher, on a tiny model."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lape_ds.corpora.cldr import sample_records
from lape_ds.languages import find_language
from tests.conftest import NEURONS
from tests.oracles.subnetwork import entry_positions
from tests.processes import REPO

NUM_LINES = 20


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Maltese, a document a line."""
    records = islice(sample_records(find_language("mt"), count=NUM_LINES, seed=1), NUM_LINES)
    path = tmp_path_factory.mktemp("text") / "mlt.txt"
    path.write_text("\n".join(" ".join(record.text.split()) for record in records), encoding="utf-8")
    return path


def launch(example: str, recipe: Path, text: Path, *, folder: Path) -> str:
    """Runs an example on one rank in `folder`; returns what it printed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "1", "--master_port", str(port)),
        *(str(REPO / "examples" / example), str(recipe.parent / "base")),
        *(str(recipe.parent / "neurons.safetensors"), "Maltese", str(text)),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def assert_only_the_mask_moved(trained: dict[str, Tensor], base: dict[str, Tensor], recipe: Path) -> None:
    """Bit for bit; nearly all inside has moved (an entry may happen to round to where it was)."""
    model = AutoModelForCausalLM.from_pretrained(recipe.parent / "base")
    positions = entry_positions(model, NEURONS["mlt_Latn"])
    num_changed = 0
    for name, before in base.items():
        bits = {2: torch.int16, 4: torch.int32}[before.element_size()]
        differs = {tuple(at) for at in (trained[name].view(bits) != before.view(bits)).nonzero().tolist()}
        assert differs <= set(positions.get(name, [])), name
        num_changed += len(differs)
    assert num_changed > 0.9 * sum(len(places) for places in positions.values())


def test_deepspeed_loop(tiny_recipe: Path, text: Path, tmp_path: Path) -> None:
    printed = launch("masked_deepspeed.py", tiny_recipe, text, folder=tmp_path)
    assert re.findall(r"^line (\d+): loss \d", printed, re.MULTILINE) == ["0", "10"]
    (states,) = tmp_path.glob("masked-checkpoint/*/mp_rank_00_model_states.pt")
    trained = torch.load(states, weights_only=True)["module"]
    base = load_file(tiny_recipe.parent / "base" / "model.safetensors")
    # The example trains in bfloat16; the base is stored in float32.
    rounded = {name: weight.bfloat16() for name, weight in base.items()}
    assert_only_the_mask_moved(trained, rounded, tiny_recipe)


def test_hf_trainer(tiny_recipe: Path, text: Path, tmp_path: Path) -> None:
    printed = launch("masked_hf_trainer.py", tiny_recipe, text, folder=tmp_path)
    # The settings of the Trainer's arguments reach the masked optimizer: 10 steps at a constant 1e-4.
    assert re.findall(r"'learning_rate': '([^']+)'", printed) == ["0.0001"] * 10
    trained = load_file(tmp_path / "masked-trainer" / "model" / "model.safetensors")
    base = load_file(tiny_recipe.parent / "base" / "model.safetensors")
    # Without the masked optimizer the Trainer's own AdamW would decay what lies outside the mask.
    assert_only_the_mask_moved(trained, base, tiny_recipe)
