"""The weight files of a model folder: which there are, and any range of any weight in them.

Below loading.py, which makes whole models of them, and training/partitioned.py, which reads each rank's part.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lape_ds.errors import UserError, first_line

_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")


def checkpoint_files(folder: Path) -> list[Path]:
    """The files that `from_pretrained` would read, in its order of preference.

    Raises:
        UserError: There are none, or one is missing that the index names.
    """
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


def tensors_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of one file, memory-mapped: nothing is read before it is looked at.

    Raises:
        UserError: Not a readable checkpoint.
    """
    with _readable(path):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    yield name, file.get_tensor(name)
        else:
            yield from torch.load(path, map_location="cpu", weights_only=True, mmap=True).items()


class WeightFiles:
    """A folder's safetensors files, memory-mapped, to read ranges of weights from.

    What `read` touches is the kernel's page cache, which the processes of a machine share and which it can drop; no copy is
    made here.

    Args:
        folder: Of `resolve_model`.

    Attributes:
        shapes: Of every tensor in the files, by name.

    Raises:
        UserError: No safetensors files there, or not readable ones.
    """

    def __init__(self, folder: Path) -> None:
        self._slices: dict[str, Any] = {}
        for path in checkpoint_files(folder):
            if path.suffix != ".safetensors":
                raise UserError(f"{folder}: {path.name} is not a safetensors file")
            with _readable(path):
                file = safe_open(path, framework="pt")
                self._slices |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        self.shapes = {name: torch.Size(part.get_shape()) for name, part in self._slices.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of a flattened tensor in its stored dtype: [stop - start]."""
        shape = self.shapes[name]
        row = math.prod(shape[1:])
        first, last = start // row, -(-stop // row)
        rows = self._slices[name][first:last] if shape else self._slices[name][...]
        return rows.reshape(-1)[start - first * row : stop - first * row]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable checkpoint: {first_line(error)}") from error
