"""One rank of tests/training/test_heldout.py: every training, one after another, as a sweep runs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from lape_ds.corpora.streams import Document
from lape_ds.distributed import ranks
from lape_ds.distributed.stopping import StopRequest
from lape_ds.recipe import load_recipe
from lape_ds.training.loop import run_training
from lape_ds.training.setup import set_up
from lape_ds.training.texts import HeldOut
from tests.training.heldout_cases import DOCUMENT_LENGTHS, LAYOUTS, ODD_TEXTS, Layout, overrides


def train(recipe: str, settings: Sequence[str], texts: dict[str, HeldOut] | None = None) -> None:
    training = set_up(load_recipe(recipe, settings))
    training.heldout |= texts or {}
    assert run_training(training, StopRequest())
    training.engine.destroy()
    assert training.run_lock is None or training.run_lock.close() is None


def odd_texts() -> dict[str, HeldOut]:
    """Token ids count up from 3, so that the test knows them too."""
    return {
        name: HeldOut([Document(torch.arange(length) + 3, 4) for length in lengths], 4 * len(lengths))
        for name, lengths in DOCUMENT_LENGTHS.items()
    }


def main(recipe: str) -> None:
    ranks.start()
    for layout in LAYOUTS:
        for measurement in layout.measurements:
            train(recipe, overrides(layout, measurement))
    for engine in ("compact", "masked"):
        train(recipe, overrides(Layout(3, engine), ODD_TEXTS), odd_texts())
    ranks.end()
    ranks.leave(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])
