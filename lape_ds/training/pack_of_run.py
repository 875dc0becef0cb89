"""From a run folder to a language pack.

After training, beside export.py; like it, it needs neither DeepSpeed nor the ranks that trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lape_ds.errors import UserError
from lape_ds.subnetwork.pack import Pack
from lape_ds.subnetwork.vectors import neuron_vectors
from lape_ds.training.export import open_run, write_entries


def pack_of_run(run_dir: Path, checkpoint: Literal["best", "last"] = "best") -> Pack:
    """The trained neurons of a run, as they are in the exported model.

    Args:
        run_dir: Of a training with `train.method` subnetwork, random or topk.
        checkpoint: As for `export_model`.

    Raises:
        UserError: No such run or checkpoint, a damaged one, another base model, or a method that does not train neurons.
    """
    run = open_run(run_dir, checkpoint)
    train, state = run.recipe.train, run.reader.state
    if run.neurons is None:
        raise UserError(
            f"{run_dir} was trained with train.method={train.method}, which changes whole weight matrices: a language pack holds "
            f"single neurons (subnetwork, random, topk); `lape-ds export {run_dir}` writes the whole model"
        )
    model = run.load_base()
    base = neuron_vectors(model, run.neurons)
    model = write_entries(model, run.reader, train, run.neurons)
    return Pack(
        neurons=run.neurons,
        new=neuron_vectors(model, run.neurons),
        base=base,
        base_fingerprint=state.base_fingerprint,
        base_model=run.recipe.model.path,
        languages=tuple(run.recipe.trained_languages),
        origin={
            "recipe": run.recipe.name,
            "run": run_dir.name,
            "method": train.method,
            "step": state.step,
            "total_steps": int(state.identity["steps"]),
        },
        base_revision=run.recipe.model.revision,
    )
