"""What models are called in tables and folders, by what the user names: the same for measuring and for comparing.

Before subjects and the comparison's reading; needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path

from lape_ds.errors import UserError


def run_place(run_dir: Path) -> Path:
    """Ends in a run's label; its folders tell runs of one name apart, and `train`, in which all of them lie, does not."""
    place = run_dir.resolve()
    return place.parents[1] / place.name if place.parent.name == "train" else place


def pack_place(path: Path) -> Path:
    """Ends in a language pack's label."""
    return path.parent.resolve() if path.name == "pack.safetensors" else path.with_suffix("")


def model_place(target: str) -> Path:
    """Of a model, the path or hub id that ends in its label; of an exported run, the run's."""
    path = Path(target)
    if not path.exists():
        return path
    path = path.resolve()
    is_exported = path.name == "model" and (path.parent / "recipe.yaml").is_file()
    return run_place(path.parent) if is_exported else path


def check_named(target: str) -> None:
    """Refuses a path at which nothing is, before it is taken for a model's id on the hub.

    Raises:
        UserError: It is no id (`owner/name`), or its first folder is here.
    """
    path = Path(target).expanduser()
    is_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", target) and not target.startswith((".", "~"))
    here = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    if not path.exists() and (here or not is_id):
        raise UserError(f"{target}: neither a recipe nor a run, pack or model is there; check the path")


def free_label(own: str, place: Path, taken: Container[str]) -> str:
    """Its own label, longer by as many folders as set it apart from other models of that name.

    Raises:
        UserError: No folder does.
    """
    label = own
    for folder in place.absolute().parents:
        if label not in taken:
            return label
        label = f"{folder.name}-{label}"
    raise UserError(f"two models are called {own}: measure them into different folders with --output")
