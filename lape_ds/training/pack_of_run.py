"""From a run folder to a language pack.

After training, beside export.py; like it, it needs neither DeepSpeed nor the ranks that trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.subnetwork.pack import Pack
from lape_ds.subnetwork.vectors import neuron_vectors
from lape_ds.training.export import TrainedRun, open_run, write_entries


def pack_of_run(
    run_dir: Path, checkpoint: Literal["best", "last"] = "best", *, language: str | None = None
) -> Pack:
    """The trained neurons of a run, as they are in the exported model.

    Args:
        run_dir: Of a training with `train.method` subnetwork, random or topk.
        checkpoint: As for `export_model`.
        language: Canonical code of one of several that were trained together: only its neurons, those too that it shares with
            the others (`origin["shared_neurons"]` counts them). None: all that were trained.

    Raises:
        UserError: No such run or checkpoint, a damaged one, another base model, or a method that does not train neurons; or
            the run knows no neurons of the language.
    """
    run = open_run(run_dir, checkpoint)
    train, state = run.recipe.train, run.reader.state
    if run.neurons is None:
        raise UserError(
            f"{run_dir} was trained with train.method={train.method}, which changes whole weight matrices: a language pack holds "
            f"single neurons (subnetwork, random, topk); `lape-ds export {run_dir}` writes the whole model"
        )
    languages, neurons, shared = tuple(run.recipe.trained_languages), run.neurons, None
    if language is not None:
        neurons, shared = _neurons_of(run_dir, run, language)
        languages = (language,)
    model = run.load_base()
    base = neuron_vectors(model, neurons)
    model = write_entries(model, run.reader, train, run.neurons)
    origin = {
        "recipe": run.recipe.name,
        "run": run_dir.resolve().name,
        "method": train.method,
        "step": state.step,
        "total_steps": int(state.identity["steps"]),
    }
    if shared is not None:
        origin |= {"trained_together": list(run.recipe.trained_languages), "shared_neurons": shared}
    return Pack(
        neurons=neurons,
        new=neuron_vectors(model, neurons),
        base=base,
        base_fingerprint=state.base_fingerprint,
        base_model=run.recipe.model.path,
        languages=languages,
        origin=origin,
        base_revision=run.recipe.model.revision,
    )


def _neurons_of(run_dir: Path, run: TrainedRun, language: str) -> tuple[Tensor, int]:
    """One language's neurons, int32 [n, 2], and how many of them another trained language has as well."""
    trained = NeuronSet.load(run_dir / "neurons.safetensors")
    own = [code for code in trained.languages if code in run.recipe.trained_languages]
    if language not in own:
        raise UserError(
            f"{run_dir} knows no neurons of {language} by itself: it has those of {', '.join(trained.languages)} "
            f"(train.method={run.recipe.train.method}); leave out --language for all that were trained"
        )
    neurons = trained.neurons(language)
    if len(neurons) == 0:
        raise UserError(
            f"{run_dir}: {language} has no neurons of its own; there is nothing to make a pack of"
        )
    others = [code for code in own if code != language]
    only_own = len(trained.difference(language, *others))
    return neurons, len(neurons) - only_own
