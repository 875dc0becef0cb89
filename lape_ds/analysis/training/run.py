"""A training run as the analyses see it: its recipe and facts, and the model before and after.

Between the run folders and the analyses. Needs torch only where a model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lape_ds.analysis.training.inputs import (
    EXPORT,
    PACK,
    Input,
    export_input,
    file_input,
    input_name,
)
from lape_ds.analysis.training.results import Subject, common_parent
from lape_ds.errors import UserError
from lape_ds.recipe import Recipe, load_recipe
from lape_ds.training.run_folder import EXPORT_MARKER, read_facts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class AnalyzedRun:
    """One run.

    Attributes:
        run_dir: Its folder.
        name: What tables and pictures call it.
        recipe: Of the run.
        facts: Its `run.json`.
    """

    run_dir: Path
    name: str
    recipe: Recipe
    facts: dict[str, Any]

    def subject(self, *inputs: Input) -> Subject:
        """Whose result an analysis of these is."""
        return Subject(
            run=str(self.run_dir),
            name=self.name,
            method=self.recipe.train.method,
            languages=tuple(self.recipe.trained_languages),
            inputs=inputs,
        )

    @cached_property
    def base_folder(self) -> Path:
        """The folder of the model that was trained from, whose weights are still those; reads all of them, once.

        Raises:
            UserError: It is not there, or holds other weights.
        """
        from lape_ds.model.loading import fingerprint, recipe_model

        folder = recipe_model(self.recipe)
        if fingerprint(folder) != self.facts["model_fingerprint"]:
            raise UserError(
                f"{self.recipe.model.path} no longer holds the weights that {self.run_dir} was trained from; restore them"
            )
        return folder

    @property
    def base(self) -> Input:
        """The model before training; the same for all of a run's life.

        Raises:
            UserError: As `base_folder`.
        """
        return Input(input_name(self.base_folder, self.run_dir), None, self.facts["model_fingerprint"])

    @property
    def trained(self) -> Input:
        """The model after training as it is now: of which step. To be asked before the model is read, which takes its time.

        Raises:
            UserError: There is none.
        """
        path = self._trained_file
        if path.is_dir():
            return export_input(path, self.run_dir)
        from lape_ds.neurons.artefact import read_metadata
        from lape_ds.subnetwork.pack import COMMAND, KIND, SCHEMA_VERSION

        told = read_metadata(path, kind=KIND, schema_version=SCHEMA_VERSION, command=COMMAND)
        return file_input(path, self.run_dir, step=json.loads(told["origin"]).get("step"))

    def neuron_set(self, path: Path) -> Input:
        """A neuron set that is read for it."""
        return file_input(path, self.run_dir)

    @property
    def _trained_file(self) -> Path:
        """The exported model's folder, or else the run's language pack, which with the base is the same model.

        Raises:
            UserError: There is neither.
        """
        exported, pack = self.run_dir / EXPORT, self.run_dir / PACK
        if (exported / EXPORT_MARKER).exists():
            return exported
        if pack.exists():
            return pack
        raise UserError(f"{self.run_dir} has no exported model: run `lape-ds export {self.run_dir}` first")

    def load_base(self, **settings: Any) -> PreTrainedModel:
        """The model before training, in the dtype of the training; on the CPU its weights stay in their file's pages.

        Args:
            **settings: For `load_model`: `device`, `attn_implementation`.
        """
        from lape_ds.model.loading import load_model

        settings = {"attn_implementation": "sdpa", **settings}
        return load_model(self.base_folder, dtype=self.recipe.model.dtype, **settings)

    def load_trained(self, **settings: Any) -> PreTrainedModel:
        """The model after training, likewise.

        Raises:
            UserError: It was not exported, and there is no pack.
        """
        from lape_ds.model.loading import load_model
        from lape_ds.subnetwork.pack import Pack

        source = self._trained_file
        if source.is_dir():
            settings = {"attn_implementation": "sdpa", **settings}
            return load_model(source, dtype=self.recipe.model.dtype, **settings)
        model = self.load_base(**settings)
        Pack.load(source).apply(model, base_fingerprint=self.facts["model_fingerprint"])
        return model


def open_runs(run_dirs: Sequence[Path]) -> list[AnalyzedRun]:
    """Opens training runs; of several, each is called by its place below their common parent.

    Raises:
        UserError: One is not the folder of a training, or is named twice.
    """
    runs = [_open(run_dir) for run_dir in run_dirs]
    if len({run.run_dir.resolve() for run in runs}) < len(runs):
        raise UserError("a run is named twice; give each once")
    if len(runs) == 1:
        return runs
    parent = common_parent(run_dirs)
    return [replace(run, name=str(run.run_dir.resolve().relative_to(parent))) for run in runs]


def _open(run_dir: Path) -> AnalyzedRun:
    facts = read_facts(run_dir)
    if facts is None or facts.get("stage") != "train":
        raise UserError(f"{run_dir} is not the folder of a training; give output_dir/train/<run>")
    recipe = load_recipe(str(run_dir), [])
    name = recipe.train.run_name or run_dir.resolve().name
    return AnalyzedRun(run_dir, name, recipe, facts)
