"""The `env:` block: which names it may hold, and that it is there when the program begins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lape_ds.errors import UserError
from lape_ds.recipe import load_recipe
from tests.processes import REPO

SHIPPED = "recipes/quickstart.yaml"


def test_values_become_text() -> None:
    recipe = load_recipe(SHIPPED, ["env={NCCL_DEBUG: INFO, OMP_NUM_THREADS: 4, EMPTY: ''}"])
    assert recipe.env == {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4", "EMPTY": ""}


@pytest.mark.parametrize("name", ["RANK", "MASTER_ADDR", "WORLD_SIZE", "SLURM_PROCID", "PYTHONPATH"])
def test_names_of_the_launcher_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"env: {name} is set by the launcher"):
        load_recipe(SHIPPED, [f"env.{name}=1"])


@pytest.mark.parametrize("override", ["env.A=true", "env.A=null", "env.A=[1]", "env=3", "env={A B: c}"])
def test_no_text_is_refused(override: str) -> None:
    with pytest.raises(UserError, match="env"):
        load_recipe(SHIPPED, [override])


@pytest.mark.parametrize("words", [["-c"], ["-u", "-c"]])
def test_the_program_begins_with_it(words: list[str], tmp_path: Path) -> None:
    """PYTHONHASHSEED is read once, when Python starts."""
    code = (
        "import os, sys\n"
        "from lape_ds.recipe.environment import enter_environment\n"
        f"open({str(tmp_path / 'starts')!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "enter_environment({'PYTHONHASHSEED': '0', 'WORDS': sys.argv[1]})\n"
        "print(os.getpid(), sys.flags.hash_randomization, os.environ['WORDS'], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, *words, code, 'a "b" %h'],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    starts = (tmp_path / "starts").read_text().split()
    assert len(starts) == 2
    assert starts[0] == starts[1]  # the launcher still knows it
    assert done.stdout == f'{starts[0]} 0 a "b" %h False\n'
