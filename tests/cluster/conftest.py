"""One recipe and one loopback cluster of each kind for all tests here, gone when they end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import yaml

from lape_ds.recipe import Recipe, load_recipe
from tests.cluster.hosts import run_on_hosts
from tests.cluster.machines import HOSTS, install_programs, slurm_nodes, ssh_hosts

STEPS = 100
# Each rank, wherever it runs, must have these; numbers are bit-equal only with as many threads.
ENVIRONMENT = {"OMP_NUM_THREADS": 1, "LAPE_TEST_WORDS": 'it\'s "5 %h" $HOME'}


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Not pytest's own: sockets want short paths, and other users' daemons a folder that they may enter."""
    install_programs()
    # A cancelled CI job takes the cluster down as well.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    path = Path(tempfile.mkdtemp(prefix="lape-cluster-"))
    yield path
    shutil.rmtree(path)
    left = [
        words
        for one in psutil.process_iter(["cmdline"])
        if str(path) in (words := " ".join(one.info["cmdline"] or []))
    ]
    signal.signal(signal.SIGTERM, before)
    assert not left, f"processes were left behind: {left}"


@pytest.fixture(scope="session")
def recipe(folder: Path, tiny_recipe: Path) -> Path:
    """The tiny recipe, with neurons to be found, steps enough to be interrupted in, and an environment."""
    data = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    data["output_dir"] = str(folder / "out")
    data["identify"] = {"tokens_per_language": 3000, "context_length": 64, "batch_size": 8}
    data["identify"] |= {"top_rate": 0.5, "filter_rate": 0.5, "activation_bar_ratio": 0.5}
    data["train"] |= {"neurons": None, "max_steps": STEPS, "checkpoint_every_steps": STEPS}
    data["train"]["heldout"] |= {"every_steps": STEPS, "tokens_per_language": 200}
    data["env"] = ENVIRONMENT
    data["eval"] = {"limit": 2}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def pdsh(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which `launch/train.sh --hostfile FOLDER/hosts` reaches two hosts."""
    (folder / "hosts").write_text("".join(f"{host} slots=1\n" for host in HOSTS), encoding="utf-8")
    with ssh_hosts(folder) as environment:
        yield os.environ | environment


@pytest.fixture(scope="session")
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which sbatch reaches two nodes."""
    with slurm_nodes(folder) as environment:
        yield os.environ | environment


@pytest.fixture(scope="session")
def undisturbed(recipe: Path, pdsh: Mapping[str, str]) -> Path:
    """A run folder: identified and trained on both hosts without an interruption."""
    run_on_hosts("identify", recipe, env=pdsh)
    assert ranks_that_counted(load_recipe(recipe)) == 2
    run_on_hosts("train", recipe, env=pdsh)
    return load_recipe(recipe).run_dir


def ranks_that_counted(recipe: Recipe) -> int:
    """Of its identification: one rank on each host, which all meet before the first one writes this."""
    return json.loads((recipe.identify_dir / "run.json").read_text(encoding="utf-8"))["world_size"]
