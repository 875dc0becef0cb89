"""Before a weight is loaded: do all ranks run the same code on the same files, and is there room for what they will write?

Between the process group and the model. What may differ is looked at where it may differ, on every rank or on the first of each
host; what they saw is gathered, so that all come to the same refusal, and one of them tells it.
"""

from __future__ import annotations

import hashlib
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedModel

from lape_ds.distributed.agreement import (
    SAME_SOFTWARE,
    check_one_folder,
    check_same,
    check_same_recipe,
    software,
)
from lape_ds.distributed.ranks import by_first, gather, local_rank, rank, ranks_here, together, world_size
from lape_ds.errors import UserError
from lape_ds.model.ffn import ffn_layers
from lape_ds.model.loading import fingerprint
from lape_ds.model.weights import checkpoint_files
from lape_ds.recipe import Recipe, TrainSection
from lape_ds.subnetwork.adapters import lora_weights_per_r
from lape_ds.subnetwork.entries import entry_masks
from lape_ds.training.inputs import Inputs
from lape_ds.training.memory import MOMENTS
from lape_ds.training.plan.cluster import cluster_of_job, gpus_here
from lape_ds.training.plan.fits import check_memory
from lape_ds.writing import check_writable

_WEIGHTS = "the model's weights"
_MORE_CHECKPOINTS = 2  # best, and the one that is being written


def preflight(recipe: Recipe, folder: Path) -> str:
    """Refuses a run whose ranks would not train one model together. Collective.

    Args:
        recipe: As this rank has loaded it.
        folder: Of the model, on this rank's host.

    Returns:
        The fingerprint of the model's weights.

    Raises:
        UserError: On all ranks alike.
    """
    _check_same(software(), SAME_SOFTWARE)
    check_same_recipe(gather((socket.gethostname(), recipe.model_dump(mode="json"))))
    _check_run_folder(recipe.run_dir)
    return _check_files(recipe, folder)


def check_inputs(recipe: Recipe, inputs: Inputs, skeleton: PreTrainedModel) -> None:
    """Refuses inputs that differ between ranks, a disk too small for the checkpoints, GPUs too small for a step. Collective.

    Raises:
        UserError: On all ranks alike.
    """
    same = "share corpus.cache_dir and output_dir between the hosts, or copy the first host's"
    texts = {
        f"the documents of {code} ({split})": stream.fingerprint
        for code, corpus in inputs.corpora.items()
        for split, stream in (("training", corpus.train), ("held out", corpus.heldout))
    }
    _check_same(inputs.identity, same)
    _check_same(texts if local_rank() == 0 else None, same)
    by_first(lambda: _check_disk(recipe, _num_trained(skeleton, inputs)))
    by_first(
        lambda: check_memory(
            recipe,
            skeleton,
            inputs.train,
            inputs.neurons,
            cluster_of_job(gpus_here(), world_size(), ranks_here()),
        )
    )


def _check_same(found: Mapping[str, str] | None, advice: str) -> None:
    """Compares what ranks have found with what the first one has; None from a rank that has not looked. Collective."""
    check_same(gather((socket.gethostname(), None if found is None else dict(found))), advice)


def _check_run_folder(run_dir: Path) -> None:
    """All ranks write a checkpoint's parts into one folder: it must be one, and each host must be allowed to."""
    together(lambda: check_writable(run_dir / "checkpoints"))
    up = by_first(lambda: next(up for up, place in enumerate(_upwards(run_dir)) if place.is_dir()))
    check_one_folder(_upwards(run_dir)[up], "checkpoints are written by all ranks into one folder")


def _upwards(run_dir: Path) -> list[Path]:
    return [run_dir.absolute(), *run_dir.absolute().parents]


def _check_files(recipe: Recipe, folder: Path) -> str:
    """The first rank reads all weights, as does that of every host that does not see the very same files."""
    looks = local_rank() == 0
    listed = gather(together(lambda: _listing(folder) if looks else None))
    reads = rank() == 0 or (looks and listed[rank()] != listed[0])
    found = together(lambda: _contents(recipe, folder, weights=reads) if looks else None)
    first = by_first(lambda: f"{folder} of {socket.gethostname()}")
    _check_same(found, f"copy the first host's to all, or share one (the model: {first})")
    return by_first(lambda: (found or {})[_WEIGHTS])


def _listing(folder: Path) -> list[tuple[str, int, int, int]]:
    """Each weight file's name, size, time of change and number: equal on two hosts only if they share the files."""
    stats = [(path.name, path.stat()) for path in checkpoint_files(folder)]
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in stats]


def _contents(recipe: Recipe, folder: Path, *, weights: bool) -> dict[str, str]:
    """What the files say that training reads, by a name for each."""
    files = {
        "the model's config.json": folder / "config.json"
    }  # hosts may hold the model under paths of their own
    if recipe.needs_neurons:
        path = recipe.train.neurons or recipe.identify_dir / "neurons.safetensors"
        files[f"the neurons in {path}"] = path
    if recipe.train.method == "topk":
        counts = recipe.identify_dir / "counts"
        files |= {
            f"the counts of {code}": counts / f"{code}.safetensors" for code in recipe.trained_languages
        }
    found = {name: _hash_of(path) for name, path in files.items()}
    return found | ({_WEIGHTS: fingerprint(folder)} if weights else {})


def _hash_of(path: Path) -> str:
    """Of a file; where there is none, that is what is compared, and told where it is read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except FileNotFoundError:
        return "no such file"
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _num_trained(skeleton: PreTrainedModel, inputs: Inputs) -> int:
    """Weights that train, told from their shapes; of (IA)³, too few to count."""
    train: TrainSection = inputs.train
    if train.method == "ia3":
        return 0
    if inputs.neurons is not None:
        return sum(mask.num_entries for mask in entry_masks(skeleton, inputs.neurons).values())
    if train.method == "lora":
        assert isinstance(train.lora.r, int)
        return train.lora.r * lora_weights_per_r(skeleton, train.lora)
    ffn = {part.parameter_name for layer in ffn_layers(skeleton) for part in layer.slices}
    return sum(
        param.numel() for name, param in skeleton.named_parameters() if train.method == "full" or name in ffn
    )


def _check_disk(recipe: Recipe, num_trained: int) -> None:
    run_dir = recipe.run_dir
    size = 4 * (1 + MOMENTS[recipe.train.optimizer.name])
    there: Sequence[Path] = list(run_dir.glob("checkpoints/step-*"))
    more = max(1, recipe.train.keep_checkpoints + _MORE_CHECKPOINTS - len(there))
    place = next(place for place in _upwards(run_dir) if place.is_dir())
    needed, free = more * size * num_trained, shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"{place} has {free / 1e9:.3g} GB free, and the checkpoints of this run take {needed / 1e9:.3g} GB there: {more} "
            f"({num_trained:,} trained weights x {size} bytes; train.keep_checkpoints, the best and the one being written); make "
            "room, or set output_dir to another disk"
        )
