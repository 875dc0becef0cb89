"""Folders of trainings that never took place: a trained model with a change whose effect is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedModel

from lape_ds.analysis.runs import AnalyzedRun, open_runs
from lape_ds.model.loading import fingerprint, load_model, load_tokenizer
from lape_ds.recipe import load_recipe, to_yaml
from lape_ds.writing import write_json


def made_run(
    recipe: Path, folder: Path, change: Callable[[PreTrainedModel], None], *overrides: str
) -> AnalyzedRun:
    """A run of a recipe whose exported model is its base with a change; without neurons of its own."""
    loaded = load_recipe(str(recipe), [f"output_dir={folder}", *overrides])
    run_dir, base = loaded.run_dir, Path(loaded.model.path)
    run_dir.mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text(to_yaml(loaded), encoding="utf-8")
    write_json(run_dir / "run.json", {"stage": "train", "model_fingerprint": fingerprint(base)})
    model = load_model(base, dtype="float32", attn_implementation="eager")
    change(model)
    model.save_pretrained(run_dir / "model")
    load_tokenizer(base).save_pretrained(run_dir / "model")
    write_json(run_dir / "model" / "lape_ds_export.json", {})
    return open_runs([run_dir])[0]
