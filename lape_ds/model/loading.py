"""From the recipe's model path to a folder, a tokenizer, a model, and a name for its weights.

Before counting, training and evaluation; the only module that talks to the hub about models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
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

from lape_ds.errors import UserError, first_line
from lape_ds.model.folder import check_made, folder_here
from lape_ds.model.weights import checkpoint_files, tensors_of
from lape_ds.recipe import Recipe

_SMALL_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_NOT_NEEDED = ["original/*", "consolidated*", "onnx/*", "*.pth", "*.gguf"]  # second copies of the weights


def resolve_model(path: str, revision: str | None = None, *, config_only: bool = False) -> Path:
    """The local folder of a model: the folder itself, or a hub model fetched into the hub's cache.

    Args:
        path: Folder or hub id.
        revision: Branch, tag or commit; hub models only.
        config_only: Of a hub model, only its config.json is wanted.

    Raises:
        UserError: No such model, gated without a token, offline and not in the cache, or the hub does not
            answer.
    """
    folder = folder_here(path)
    if folder is not None:
        return folder
    if config_only:
        return _download(path, revision, ["config.json"])
    found = _download(path, revision, [*_SMALL_FILES, "*.safetensors"])
    if not any(found.glob("*.safetensors")):
        found = _download(path, revision, [*_SMALL_FILES, "*.bin"])
    return found


def recipe_model(recipe: Recipe, *, config_only: bool = False) -> Path:
    """`resolve_model` of a recipe's model; knows of models that the recipe makes itself.

    Raises:
        UserError: As `resolve_model`, or the recipe's own model has not been made yet.
    """
    check_made(recipe)
    return resolve_model(recipe.model.path, recipe.model.revision, config_only=config_only)


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
        raise UserError(f"{where}: the hub refused: {first_line(error)}; try again later") from error
    except cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__) as error:
        # Of the transport (whichever HTTP library the hub's client uses), and of the disk that the cache is on.
        raise UserError(
            f"{where}: could not be fetched into {HF_HUB_CACHE}: {first_line(error)}; mend that and give the same command "
            "again: whole files are kept"
        ) from error


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


def load_skeleton(folder: Path, **settings: Any) -> PreTrainedModel:
    """The model without its weights (they are on the meta device): shapes and names, in no time and no memory.

    Buffers (rotary frequencies) are real, on the CPU, as `load_model` gives them.

    Args:
        folder: Of `resolve_model`.
        **settings: For `from_config`: `dtype`, `attn_implementation`.

    Raises:
        UserError: transformers does not know the architecture, or it has no such attention; or the checkpoint is quantised.
    """
    config = load_config(folder)
    with init_empty_weights(include_buffers=False):
        try:
            model = AutoModelForCausalLM.from_config(config, **settings)
        except (
            ValueError,
            ImportError,
        ) as error:  # an attention that it does not have, or that is not installed
            raise UserError(f"{folder}: the model there cannot be built: {first_line(error)}") from error
    model.tie_weights()  # moving weights to the meta device has parted those that are one
    return model.eval()


def load_model(
    folder: Path, *, dtype: str, attn_implementation: str, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """The causal language model of a folder, in eval mode.

    Weight by weight from the memory-mapped files to the device, so that no second copy exists, not even on the host of a GPU.
    On the CPU, weights stored in `dtype` stay in the file's pages until they are written to.

    Args:
        folder: Of `resolve_model`.
        dtype: "float32" or "bfloat16".
        attn_implementation: "eager", "sdpa" or "flash_attention_2".
        device: Where the weights are wanted.

    Raises:
        UserError: The checkpoint cannot be loaded, lacks weights, has them in other shapes, or is quantised.
    """
    with without_bars():
        model, report = _from_folder(
            AutoModelForCausalLM.from_pretrained,
            folder,
            "model",
            config=load_config(folder),
            dtype=getattr(torch, dtype),
            attn_implementation=attn_implementation,
            device_map={"": device},
            ignore_mismatched_sizes=True,  # told below
            output_loading_info=True,
        )
    # transformers would go on with random values where the file has none.
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"{folder}: the checkpoint lacks {len(missing)} weights, e.g. {missing[0]}; fetch or export it "
            "again"
        )
    if report["mismatched_keys"]:
        name, stored, wanted = min(report["mismatched_keys"])
        raise UserError(
            f"{folder}: {name} has shape {list(stored)} in the checkpoint and {list(wanted)} by config.json; fetch or export "
            "them again"
        )
    return model.eval()


def load_config(folder: Path) -> PretrainedConfig:
    """The configuration of a causal language model's folder.

    Raises:
        UserError: None there that transformers can read, of no causal language model, or of a quantised checkpoint.
    """
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
        raise UserError(f"{folder}: the {what} there cannot be loaded: {first_line(error)}") from error


def fingerprint(folder: Path) -> str:
    """A content hash of a checkpoint's weights: 64 hexadecimal digits.

    Changes with any weight, name, shape or stored dtype; not with the sharding, the file's other metadata, or
    the dtype in which the model is loaded. Reads every byte (memory-mapped), on all cores.

    Raises:
        UserError: No checkpoint there, or not a readable one.
    """
    tensors = [found for path in checkpoint_files(folder) for found in tensors_of(path)]
    with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        hashes = dict(pool.map(_hash_tensor, tensors))
    total = hashlib.sha256()
    for name in sorted(hashes):
        total.update(f"{name}\n{hashes[name]}\n".encode())
    return total.hexdigest()


def _hash_tensor(named: tuple[str, Tensor]) -> tuple[str, str]:
    """Name, and hash of dtype, shape and bytes."""
    name, tensor = named
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return name, digest.hexdigest()
