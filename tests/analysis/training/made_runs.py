"""Run folders as training and export leave them, with weights and numbers that a test has planted: nothing is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from lape_ds.model.loading import fingerprint, load_model
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import NEURON_METHODS, load_recipe, to_yaml
from lape_ds.training.export import write_model


def read_analysis(folder: Path, name: str) -> list[dict[str, Any]]:
    """What an analysis's JSON says of each of its runs."""
    content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return content.get("runs", [content])


def make_run(
    recipe_path: Path,
    name: str,
    *,
    method: str = "subnetwork",
    lines: Sequence[dict[str, Any]] = (),
    plant: Callable[[PreTrainedModel], None] | None = None,
) -> Path:
    """A run of `tiny_recipe` below its output folder.

    Args:
        recipe_path: `tiny_recipe`.
        name: Of the run; with slashes, folders within folders.
        method: `train.method`.
        lines: Of `metrics.jsonl`.
        plant: Changes the base model into what is exported, in place; None: not exported.
    """
    recipe = load_recipe(str(recipe_path), [f"train.run_name={name}", f"train.method={method}"])
    run_dir, base = recipe.run_dir, recipe_path.parent / "base"
    run_dir.mkdir(parents=True)
    facts = {"stage": "train", "model_fingerprint": fingerprint(base), "total_steps": len(lines)}
    (run_dir / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    (run_dir / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if method in NEURON_METHODS and recipe.train.neurons is not None:
        NeuronSet.load(recipe.train.neurons).only("mlt_Latn").save(run_dir / "neurons.safetensors")
    if plant is not None:
        model = load_model(base, dtype="float32", attn_implementation="sdpa")
        with torch.no_grad():
            plant(model)
        write_model(model, run_dir / "model", tokenizer_folder=base)
        (run_dir / "model" / "lape_ds_export.json").write_text(
            json.dumps({"step": len(lines), "checkpoint": "of the test"})
        )
    return run_dir
