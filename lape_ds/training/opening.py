"""The run folder as training begins: made this run's own, and told what the run is made of.

After the set-up, when nothing is left to refuse. The first rank only.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lape_ds.distributed.ranks import ranks_here, world_size
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import Recipe, freeze_recipe
from lape_ds.runlog import write_run_json
from lape_ds.training.checkpoint import LORA_R
from lape_ds.training.loop import Training
from lape_ds.training.memory import contents_of, describe_memory
from lape_ds.training.restarts import goes_on, mark_begun
from lape_ds.training.run_folder import RUN_SECTIONS
from lape_ds.writing import told_if_unwritable


def open_run_folder(recipe: Recipe, run_dir: Path) -> None:
    """Makes the folder this recipe's."""
    with told_if_unwritable(str(run_dir)):
        anew = not goes_on(recipe)
        if anew and run_dir.exists():
            shutil.rmtree(run_dir)
        freeze_recipe(recipe, run_dir, sections=RUN_SECTIONS)
        if anew:
            mark_begun(run_dir)


def write_start(training: Training, chosen: NeuronSet | None) -> None:
    """Writes what the run is made of, and tells what it costs."""
    with told_if_unwritable(str(training.run_dir)):
        _write_facts(training, chosen)
    print(describe_memory(training.engine, training.trained), file=sys.stderr)
    _tell_what_differs(training)


def _write_facts(training: Training, chosen: NeuronSet | None) -> None:
    if chosen is not None:
        chosen.save(training.run_dir / "neurons.safetensors")
    facts = {
        "stage": "train",
        "world_size": world_size(),
        "trained_parameters": training.trained.num_entries,
        "parameters": contents_of(training.engine, training.trained).num_parameters,
        "total_steps": training.total_steps,
        "identity": training.state.identity,
        "model_fingerprint": training.state.base_fingerprint,
    }
    write_run_json(training.run_dir, training.recipe, facts)


def _tell_what_differs(training: Training) -> None:
    """What is not as the recipe says, or not said there."""
    recipe = training.recipe
    if recipe.train.max_steps is not None and training.total_steps < recipe.train.max_steps:
        print(
            f"the text gives {training.total_steps:,} steps at train.epochs={recipe.train.epochs:g}: train.max_steps="
            f"{recipe.train.max_steps:,} is not reached; raise train.epochs for more",
            file=sys.stderr,
        )
    if recipe.launch.num_ranks is not None and recipe.launch.num_ranks != ranks_here():
        print(
            f"ranks on this node: {ranks_here()}, the recipe's launch.num_ranks is {recipe.launch.num_ranks}; a step has "
            f"{training.global_batch_size} blocks",
            file=sys.stderr,
        )
    step = training.state.step
    if recipe.train.lora.r == "match" and recipe.train.method == "lora":
        print(
            f"train.lora.r: match gives r {training.state.identity[LORA_R]}, {training.trained.num_entries:,} weights",
            file=sys.stderr,
        )
    if 0 < step < training.total_steps:
        print(
            f"going on from step {step:,} of {training.total_steps:,} ({training.run_dir})", file=sys.stderr
        )
