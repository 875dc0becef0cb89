"""Ranks that would not train one model together, or not to the end, are refused before a weight is loaded: one line, exit 2."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import lape_ds
from tests.faults.job import Job, own_mounts


def job_of(recipe: Path, folder: Path, *overrides: str, world_size: int = 2) -> Job:
    (folder / "out").mkdir(parents=True)
    return Job(folder, [str(recipe), f"output_dir={folder}/out", *overrides], world_size=world_size)


def test_another_version_on_one_host(tiny_recipe: Path, tmp_path: Path) -> None:
    package = tmp_path / "elsewhere" / "lape_ds"
    shutil.copytree(Path(lape_ds.__file__).parent, package)
    (package / "__init__.py").write_text('__version__ = "0.0.9"\n')
    with job_of(tiny_recipe, tmp_path / "job") as job:
        # The working folder comes first on a module's path: only without it the other copy is found.
        job.environments[1] = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(package.parent)}
        reason = job.start().ends_with(2, 2)
    assert reason.startswith("error: lape_ds: 0.0.9 (code ")
    assert f"{lape_ds.__version__} (code " in reason
    assert " on rank 1 on " in reason
    assert "install the same" in reason
    assert not list((tmp_path / "job" / "out").iterdir())


def test_another_model_on_one_host(tiny_recipe: Path, tmp_path: Path) -> None:
    """One weight differs in one bit, in a copy of the same size."""
    base, copy = tiny_recipe.parent / "base", tmp_path / "copy"
    shutil.copytree(base, copy)
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"].view(torch.int32)[0] ^= 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with job_of(tiny_recipe, tmp_path / "job") as job:
        job.prefixes[1] = own_mounts(f"mount --bind {copy} {base}")
        reason = job.start().ends_with(2, 2)
    assert reason.startswith("error: the model's weights: ")
    assert f"(the model: {base} of " in reason
    assert " on rank 1 on " in reason


def test_a_file_that_one_host_cannot_read(tiny_recipe: Path, tmp_path: Path) -> None:
    base, copy = tiny_recipe.parent / "base", tmp_path / "copy"
    shutil.copytree(base, copy)
    (copy / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-1000])
    with job_of(tiny_recipe, tmp_path / "job") as job:
        job.prefixes[1] = own_mounts(f"mount --bind {copy} {base}")
        reason = job.start().ends_with(2, 2)
    assert reason.startswith("error: rank 1 on ")
    assert "model.safetensors: not a readable checkpoint" in reason


def test_a_run_folder_on_a_local_disk(tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "job" / "out"
    with job_of(tiny_recipe, tmp_path / "job") as job:
        job.prefixes[1] = own_mounts(f"mount -t tmpfs none {out}")
        reason = job.start().ends_with(2, 2)
    assert reason.startswith(f"error: {out} is not one folder: what rank 1 on ")
    assert "set output_dir to a file system that all nodes share" in reason
    assert not list(out.iterdir())


def test_a_disk_too_small_for_the_checkpoints(tiny_recipe: Path, tmp_path: Path) -> None:
    """A tiny model has some 80,000 weights: three checkpoints of it take 3 MB."""
    cache = f"corpus.cache_dir={tmp_path}/packed"
    with job_of(tiny_recipe, tmp_path / "job", "train.method=full", cache, world_size=1) as job:
        job.prefixes[0] = own_mounts(f"mount -t tmpfs -o size=1m none {tmp_path}/job/out")
        reason = job.start().ends_with(2)
    assert "has 0.00105 GB free" in reason
    assert "trained weights x 12 bytes" in reason
    assert "make room, or set output_dir to another disk" in reason
