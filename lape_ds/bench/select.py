"""`lape-ds bench select`: time and memory of selecting the neurons of hundreds of languages.

Beside the room's other commands; needs no model.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lape_ds.bench.record import new_record, write_record
from lape_ds.bench.rounds import Spread
from lape_ds.languages import all_languages
from lape_ds.neurons.families import families
from lape_ds.neurons.lape import most_active, select
from lape_ds.neurons.probabilities import Probabilities
from lape_ds.runlog import progress

METHODS = ("lape", "family_lape", "probability")  # mean_activation does as probability does
_TOKENS = 13_100_000  # of a language, as published


@dataclass(frozen=True)
class Size:
    """Of what is selected from; by default as large a case as one meets: 300 languages of Mistral-Nemo-12B."""

    languages: int = 300
    layers: int = 40
    neurons_per_layer: int = 14_336


def bench_select(size: Size, *, rounds: int, seed: int, out: Path) -> dict[str, Any]:
    """Measures every method and writes the record, JSON and a Markdown table beside it.

    Each method has a process of its own, whose peak is that of the whole process: Python, torch and the counts included.

    Args:
        size: How many languages and neurons.
        rounds: Selections of each method.
        seed: Of the counts.
        out: The JSON file.
    """
    record = new_record("select", measured=True)
    record["settings"] = {**asdict(size), "tokens": _TOKENS, "rounds": rounds, "seed": seed}
    methods = {}
    for method in progress(list(METHODS), "selecting", unit="methods"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            methods[method] = pool.apply(_measure, (method, size, rounds, seed, torch.get_num_threads()))
    record["methods"] = methods
    write_record(record, out)
    return record


def _measure(method: str, size: Size, rounds: int, seed: int, num_threads: int) -> dict[str, Any]:
    torch.set_num_threads(num_threads)
    table = random_table(size, seed)
    held = _resident("VmRSS")
    turn = _turn(method, table, size)
    seconds, selected = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        selected = turn()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": asdict(Spread.of(seconds)),
        "held": held,
        "peak": _resident("VmHWM"),
        "selected": sum(len(neurons) for neurons in selected),
    }


def random_table(size: Size, seed: int) -> Probabilities:
    """Random counts, few neurons often active; independent, so that nearly every neuron passes the filter: the dearest case."""
    generator = torch.Generator().manual_seed(seed)
    number = size.layers * size.neurons_per_layer
    tokens = tuple(_TOKENS + 1000 * k for k in range(size.languages))
    active = tuple((torch.rand(number, generator=generator) ** 4 * _TOKENS).int() for _ in tokens)
    return Probabilities(active, tokens, size.layers)


def _turn(method: str, table: Probabilities, size: Size) -> Callable[[], list[Tensor]]:
    if method == "probability":
        shape = (size.layers, size.neurons_per_layer)
        return lambda: [most_active(probs_N.view(shape), top_rate=0.05) for probs_N in table.languages()]
    codes = [language.code for language in all_languages()]
    named = [codes[k % len(codes)] for k in range(size.languages)]
    return partial(select, table, families=families(named, {}) if method == "family_lape" else None)


def _resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS) or at its worst (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
