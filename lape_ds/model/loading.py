"""From the recipe's model path to a folder, a tokenizer, a model, and a name for its weights.

Before counting, training and evaluation; the only module that talks to the hub about models.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from lape_ds.errors import UserError
from lape_ds.recipe import Recipe

_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_NOT_NEEDED = ["original/*", "consolidated*", "onnx/*", "*.pth", "*.gguf"]  # second copies of the weights
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


def resolve_model(path: str, revision: str | None = None) -> Path:
    """The local folder of a model: the folder itself, or a hub model fetched into the hub's cache.

    Args:
        path: Folder or hub id.
        revision: Branch, tag or commit; hub models only.

    Raises:
        UserError: No such model, gated without a token, offline and not in the cache, or the hub does not
            answer.
    """
    folder = Path(path).expanduser()
    if folder.exists() or path.startswith((".", "/", "~")):
        if not (folder / "config.json").is_file():
            raise UserError(
                f"model.path={path}: no config.json there; give the folder of a Hugging Face model, or a hub "
                "id"
            )
        return folder
    found = _download(path, revision, [*_SMALL_FILES, "*.safetensors"])
    if not any(found.glob("*.safetensors")):
        found = _download(path, revision, [*_SMALL_FILES, "*.bin"])
    return found


def recipe_model(recipe: Recipe) -> Path:
    """`resolve_model` of a recipe's model; knows of models that the recipe makes itself.

    Raises:
        UserError: As `resolve_model`, or the recipe's own model has not been made yet.
    """
    if recipe.model.create is not None and not (Path(recipe.model.path) / "config.json").is_file():
        raise UserError(
            f"model.path={recipe.model.path} is not made yet (relative to {Path.cwd()}): run `lape-ds pretrain` with this "
            "recipe first"
        )
    return resolve_model(recipe.model.path, recipe.model.revision)


def _download(hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    where = f"model.path={hub_id}" + (f" (revision {revision})" if revision else "")
    try:
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=_NOT_NEEDED)
        )
    except GatedRepoError as error:  # before RepositoryNotFoundError, of which it is a kind
        raise UserError(
            f"{where}: gated on the hub; accept its terms at https://huggingface.co/{hub_id}, then log in "
            "with `hf auth login` "
            "or set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{where}: neither a folder here nor a model on the hub; check the spelling (if it is private, "
            "log in with `hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{where}: the hub has no such revision; check model.revision") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise UserError(
            f"{where}: not a folder here, not in the hub's cache, and the hub cannot be reached "
            "(HF_HUB_OFFLINE set, or no network); "
            "go online once, or set model.path to a folder"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(f"{where}: the hub refused: {str(error).splitlines()[0]}; try again later") from error


@contextmanager
def without_bars() -> Iterator[None]:
    """Silences transformers' bars for reading and writing weights: one for each rank would fill a log."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        UserError: The folder has none that transformers can read.
    """
    return _from_folder(AutoTokenizer.from_pretrained, folder, "tokenizer")


def load_skeleton(folder: Path) -> PreTrainedModel:
    """The model without its weights (on the meta device): shapes and names, in no time and no memory.

    Raises:
        UserError: transformers does not know the architecture, or the checkpoint is quantised.
    """
    config = _load_config(folder)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def load_model(folder: Path, *, dtype: str, attn_implementation: str) -> PreTrainedModel:
    """The causal language model of a folder, in eval mode, on the CPU (or partitioned, under `zero.Init`).

    Args:
        folder: Of `resolve_model`.
        dtype: "float32" or "bfloat16".
        attn_implementation: "eager", "sdpa" or "flash_attention_2".

    Raises:
        UserError: The checkpoint cannot be loaded, lacks weights, or is quantised.
    """
    with without_bars():
        model, report = _from_folder(
            AutoModelForCausalLM.from_pretrained,
            folder,
            "model",
            config=_load_config(folder),
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            output_loading_info=True,
        )
    # transformers would go on with random values where the file has none.
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"{folder}: the checkpoint lacks {len(missing)} weights, e.g. {missing[0]}; fetch or export it "
            "again"
        )
    return model.eval()


def _load_config(folder: Path) -> PretrainedConfig:
    config = _from_folder(AutoConfig.from_pretrained, folder, "config.json")
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(
            f"{folder}: model type {config.model_type!r} is no causal language model; give one that is"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"{folder}: a quantised checkpoint; its weights cannot be trained, use the unquantised model"
        )
    return config


def _from_folder(load: Callable[..., Any], folder: Path, what: str, **settings: Any) -> Any:
    """Calls a `from_pretrained` on a folder that is here; what it finds wrong there is the user's to mend."""
    try:
        return load(folder, local_files_only=True, **settings)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"{folder}: the {what} there cannot be loaded: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def fingerprint(folder: Path) -> str:
    """A content hash of a checkpoint's weights: 64 hexadecimal digits.

    Changes with any weight, name, shape or stored dtype; not with the sharding, the file's other metadata, or
    the dtype in which the model is loaded. Reads every byte (memory-mapped), about a second per gigabyte.

    Raises:
        UserError: No checkpoint there, or not a readable one.
    """
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        per_file = pool.map(_hash_file, _checkpoint_files(folder))
        hashes = {name: digest for file_hashes in per_file for name, digest in file_hashes.items()}
    total = hashlib.sha256()
    for name in sorted(hashes):
        total.update(f"{name}\n{hashes[name]}\n".encode())
    return total.hexdigest()


def _checkpoint_files(folder: Path) -> list[Path]:
    """The files that `from_pretrained` would read, in its order of preference."""
    for single in _SINGLE_FILES:
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return [folder / single]
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            absent = [name for name in names if not (folder / name).is_file()]
            if absent:
                raise UserError(
                    f"{folder}: {absent[0]} is missing, which {index.name} names; fetch the model again"
                )
            return [folder / name for name in names]
    raise UserError(
        f"{folder}: no weights there (looked for {', '.join(_SINGLE_FILES)} and their .index.json)"
    )


def _hash_file(path: Path) -> dict[str, str]:
    """Tensor name to hash of its dtype, shape and bytes."""
    hashes = {}
    for name, tensor in _tensors_of(path):
        digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        hashes[name] = digest.hexdigest()
    return hashes


def _tensors_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    yield name, file.get_tensor(name)
        else:
            yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()
    except (SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable checkpoint: {_first_line(error)}") from error
