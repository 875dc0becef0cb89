"""The folder that `lape-ds atlas` writes: what identification and ablation found, in pictures and numbers, with its card.

After identification and ablation, from whose folders everything is taken; nothing is counted or measured here. The folder is
written whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lape_ds.analysis.neurons.overlap import Layers, Overlap, set_families
from lape_ds.analysis.neurons.pictures import draw_layers, draw_overlap, write_picture
from lape_ds.atlas.card import write_card
from lape_ds.atlas.picture import draw_agreement_and_confidence
from lape_ds.atlas.provenance import commits_read
from lape_ds.atlas.published import is_local, published_model_id, published_recipe
from lape_ds.atlas.push import ATLAS_MARKER
from lape_ds.atlas.table import describe_languages
from lape_ds.distributed.run_lock import take_lock
from lape_ds.errors import UserError
from lape_ds.neurons.counts import Counts
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import Recipe, to_yaml
from lape_ds.runlog import surroundings
from lape_ds.writing import told_if_unwritable, whole_folder, write_json, write_text


def write_atlas(recipe: Recipe, *, with_counts: bool) -> Path:
    """Writes `<output_dir>/atlas`, or replaces it. Nothing in it tells of the user's machine (published.py).

    Args:
        recipe: Its identification and its ablation are finished.
        with_counts: Also copy the counts (4 bytes × 16 buckets of every neuron and language: 29 MB a language of an 8B model).

    Returns:
        The folder.

    Raises:
        UserError: Identification or ablation is missing or of other languages, the folder holds something else, another job is
            writing it, or it cannot be written.
    """
    with take_lock(recipe.atlas_dir, instead="set another output_dir"):
        return _write(recipe, with_counts=with_counts)


def _write(recipe: Recipe, *, with_counts: bool) -> Path:
    named = {"model_id": published_model_id(recipe)}
    neuron_set = replace(NeuronSet.load(recipe.identify_dir / "neurons.safetensors"), **named)
    stability = _read_json(recipe.identify_dir / "stability.json", "lape-ds identify") | named
    ablation = _read_json(recipe.output_dir / "ablation" / "ablation.json", "lape-ds atlas") | named
    _check_same(recipe, neuron_set, stability, ablation)
    published = published_recipe(recipe)
    folder = recipe.atlas_dir
    with (
        told_if_unwritable(str(folder), kept="what was there before, counts and ablation"),
        whole_folder(folder, marker_files=(ATLAS_MARKER,)) as temporary,
    ):
        neuron_set.save(temporary / "neurons.safetensors")
        write_json(temporary / "stability.json", stability)
        write_json(temporary / "ablation.json", ablation)
        shutil.copyfile(recipe.output_dir / "ablation" / "ablation.png", temporary / "ablation.png")
        if with_counts:
            _write_counts(recipe, temporary / "counts", neuron_set)
        write_json(temporary / ATLAS_MARKER, describe_languages(neuron_set, stability))
        _draw(neuron_set, stability, temporary)
        write_text(temporary / "recipe.yaml", to_yaml(published))
        write_json(temporary / "run.json", _run(recipe))
        write_text(temporary / "README.md", write_card(temporary, published))
    return folder


def _read_json(path: Path, command: str) -> Any:
    if not path.is_file():
        raise UserError(f"no such file: {path} (`{command}` writes it)")
    return json.loads(path.read_text(encoding="utf-8"))


def _check_same(
    recipe: Recipe, neuron_set: NeuronSet, stability: Mapping[str, Any], ablation: Mapping[str, Any]
) -> None:
    """That stability and ablation are of this neuron set."""
    if stability["method"] != neuron_set.method or list(stability["languages"]) != list(neuron_set.languages):
        raise UserError(
            f"{recipe.identify_dir / 'stability.json'} is of another selection than neurons.safetensors beside it; run "
            "`lape-ds identify` with this recipe again"
        )
    others = [code for code in ablation["languages"] if code not in neuron_set.languages]
    if ablation["method"] != neuron_set.method or others:
        raise UserError(
            f"{recipe.output_dir / 'ablation' / 'ablation.json'} is of another neuron set ({ablation['method']}"
            f"{', with ' + others[0] if others else ''}); run `lape-ds atlas` with this recipe again"
        )


def _write_counts(recipe: Recipe, folder: Path, neuron_set: NeuronSet) -> None:
    """The counts, under the model's name that is published."""
    folder.mkdir()
    for code in neuron_set.languages:
        counts = Counts.load(recipe.identify_dir / "counts" / f"{code}.safetensors")
        settings = replace(counts.settings, model_id=neuron_set.model_id)
        replace(counts, settings=settings).save(folder / f"{code}.safetensors")


def _draw(neuron_set: NeuronSet, stability: Mapping[str, Any], folder: Path) -> None:
    families = dict(zip(neuron_set.languages, set_families(neuron_set), strict=True))
    write_picture(draw_agreement_and_confidence(stability, families), folder / "agreement.png")
    write_picture(draw_layers(Layers.of(neuron_set)), folder / "layers.png")
    for name, overlap in (
        ("languages", Overlap.of_languages(neuron_set)),
        ("families", Overlap.of_families(neuron_set)),
    ):
        write_json(folder / f"overlap-{name}.json", overlap.as_json())
        title = f"Shared neurons of {name}, {neuron_set.model_id}"
        write_picture(draw_overlap(overlap, title=title), folder / f"overlap-{name}.png")


def _run(recipe: Recipe) -> dict[str, Any]:
    """As a run's run.json, without what is nobody's business: the machine's name, the user's paths."""
    around = surroundings()
    hardware = {name: value for name, value in around["hardware"].items() if name != "host"}
    return {
        "schema_version": 1,
        "stage": "atlas",
        **around,
        "hardware": hardware,
        "seeds": {"seed": recipe.seed},
        "model": {
            "hub_id": None if is_local(recipe) else recipe.model.path,
            "revision": recipe.model.revision,
        },
        "commits": commits_read(recipe),
    }
