"""Files of tensors with metadata that say what they are: the envelope of counts, neuron sets and language packs.

Between the stages: everything that deals in neurons and is left on disk goes through here. A file is safetensors (never
pickle), carries its kind and schema version, and is written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.writing import whole_file

_IDENTIFY = "lape-ds identify RECIPE"


def save_artefact(
    path: Path, tensors: Mapping[str, Tensor], *, kind: str, schema_version: int, metadata: Mapping[str, str]
) -> None:
    """Writes tensors and metadata to `path`; an interruption leaves the earlier file, or none.

    Args:
        path: The file; its folder is made.
        tensors: Any names, any shapes (also empty).
        kind: What the file is, e.g. "counts"; `load_artefact` insists on it.
        schema_version: Of this kind.
        metadata: Further strings.
    """
    header = {**metadata, "kind": kind, "schema_version": str(schema_version)}
    # Clones, because safetensors refuses views of one storage.
    own = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as temporary:
        save_file(own, temporary, metadata=header)


def load_artefact(
    path: Path, *, kind: str, schema_version: int, command: str = _IDENTIFY
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads what `save_artefact` wrote: (tensors on the CPU, metadata).

    Args:
        path: The file.
        kind: As it was written.
        schema_version: The one that is read.
        command: Which makes such a file, for messages.

    Raises:
        UserError: No such file, not safetensors, another kind of file, or another schema version.
    """
    metadata = read_metadata(path, kind=kind, schema_version=schema_version, command=command)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)


def read_metadata(path: Path, *, kind: str, schema_version: int, command: str = _IDENTIFY) -> dict[str, str]:
    """Reads the metadata alone, without the tensors.

    Raises:
        UserError: As `load_artefact`.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path} (a file of {kind}, which `{command}` writes)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({error}); write it again with `{command}`"
        ) from error
    if metadata.get("kind") != kind:
        raise UserError(
            f"{path} is not a file of {kind} (its metadata say kind={metadata.get('kind')!r}); give one that "
            "is"
        )
    if metadata.get("schema_version") != str(schema_version):
        found = metadata.get("schema_version")
        raise UserError(
            f"{path} has schema version {found}, this version of lape-ds reads {schema_version}; make it "
            f"again with `{command}`"
        )
    return metadata
