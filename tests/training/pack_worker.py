"""One process that trains several tiny models, one after another, for tests/training/test_pack_of_run.py."""

from __future__ import annotations

import json
import sys

import torch

from lape_ds.distributed import ranks
from lape_ds.distributed.stopping import StopRequest
from lape_ds.recipe import load_recipe
from lape_ds.training.loop import run_training
from lape_ds.training.setup import set_up


def main(recipe: str, runs: list[list[str]]) -> None:
    for overrides in runs:
        training = set_up(load_recipe(recipe, overrides))
        assert run_training(training, StopRequest())
        training.engine.destroy()
        assert training.run_lock is None or training.run_lock.close() is None
    ranks.end()
    ranks.leave(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], json.loads(sys.argv[2]))
