"""Ablations that nobody measured: any changes, document by document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from lape_ds.identification.ablation import AblatedRow, Ablation
from lape_ds.identification.ablation_rows import AblatedSet, Kind
from lape_ds.neurons.neuron_set import NeuronSet

SEEDS = (0, 1)


def made_ablation(
    codes: Sequence[str],
    documents: Mapping[str, np.ndarray],
    change: Callable[[Kind, str, int | None, str], np.ndarray],
    *,
    without: Sequence[str] = (),
) -> Ablation:
    """An ablation with two random sets of each language.

    Args:
        codes: The languages.
        documents: By language the bytes of each document.
        change: Of (kind, language off, seed, language measured): bits by which each document costs more.
        without: Languages that have no neurons.
    """
    neurons = torch.tensor([[0, 1], [1, 2]], dtype=torch.int32)
    base = {code: torch.from_numpy(2.0 * documents[code]) for code in codes}

    def row(kind: Kind, code: str, seed: int | None = None) -> AblatedRow:
        nats = {
            other: base[other] + torch.from_numpy(change(kind, code, seed, other) * np.log(2))
            for other in codes
        }
        return AblatedRow(AblatedSet(kind, code, neurons, seed), nats)

    rows = [
        made
        for code in codes
        if code not in without
        for made in (
            row("identified", code),
            *(row("random", code, seed) for seed in SEEDS),
            row("most_active", code),
        )
    ]
    return Ablation(
        neuron_set=NeuronSet(
            {code: neurons[: 0 if code in without else 2] for code in codes}, 2, 8, "made/up", "", "lape", {}
        ),
        settings={"dtype": "float32"},
        num_tokens={code: len(documents[code]) for code in codes},
        num_bytes={code: torch.from_numpy(documents[code].astype(np.int64)) for code in codes},
        base=base,
        rows=tuple(rows),
    )


def random_ablation(
    codes: Sequence[str],
    *,
    num_documents: int = 30,
    own: float = 0.03,
    seed: int = 0,
    without: Sequence[str] = (),
) -> Ablation:
    """Skewed documents; only identified neurons matter to their own language more than to others."""
    rng = np.random.default_rng(seed)
    documents = {code: rng.integers(50, 400, num_documents + number % 3) for number, code in enumerate(codes)}

    def change(kind: Kind, code: str, number: int | None, other: str) -> np.ndarray:
        level = own * rng.uniform(0.5, 1.5) if kind == "identified" and code == other else 0.004
        sizes = documents[other]
        return sizes * level * rng.gamma(1.0, 1.0, len(sizes)) * rng.choice([1.0, 1.0, -0.5], len(sizes))

    return made_ablation(codes, documents, change, without=without)
