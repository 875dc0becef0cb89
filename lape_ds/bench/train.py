"""`lape-ds bench train`: every method's training step side by side, measured, or planned where no GPU can hold it.

The room's command; its record is what README's table is made from.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lape_ds.bench.contenders import METHODS, WEIGHT_DECAY, Contender, StepBytes, contender
from lape_ds.bench.flops import model_flops
from lape_ds.bench.record import new_record, write_record
from lape_ds.bench.rounds import Spread, interleave, recorded_ratios
from lape_ds.bench.shapes import (
    Batch,
    Shape,
    all_scored,
    build_model,
    choose_shape,
    draw_neurons,
    neurons_per_layer,
    random_batch,
)
from lape_ds.errors import UserError
from lape_ds.runlog import progress
from lape_ds.training.plan.cluster import peak_flops

LEARNING_RATE = 1e-4  # the paper's for a subnetwork; the time of a step does not depend on it
WARMUP_ROUNDS = 2
# Cannot run without values: SHiRA makes sparse tensors, for which the meta device has no kernels.
NOT_PLANNED = ("sparse",)
# On a GPU their moments (4 to 8 times what all others keep) are made anew before each turn and dropped after it.
_HEAVY = ("full", "ffn")


def bench_train(
    shape_name: str | None, *, neurons: str, methods: Sequence[str], rounds: int, seed: int, out: Path
) -> dict[str, Any]:
    """Measures or plans the methods and writes the record, JSON and a Markdown table beside it.

    Args:
        shape_name: Of `SHAPES`; None: the 100 M shape, or Llama-3.1-8B's where there is a GPU.
        neurons: Of `NEURONS`.
        methods: Of `METHODS`; empty: all.
        rounds: Counted ones; two more go before them.
        seed: Of weights, tokens, neurons and orders.
        out: The JSON file.

    Raises:
        UserError: A name that is not known.
    """
    shape_name, shape, device = choose_shape(shape_name)
    counts = neurons_per_layer(shape_name, neurons)
    wanted = _known(methods)
    planned = shape.large and device.type == "cpu"
    record = new_record("train", measured=not planned)
    record["settings"] = {
        "shape": shape_name,
        "neurons": neurons,
        "neurons_per_layer": list(counts),
        **_settings(shape),
        **({} if planned else {"rounds": rounds, "warmup_rounds": WARMUP_ROUNDS}),
        "seed": seed,
    }
    drawn = draw_neurons(counts, shape.num_neurons, seed)
    if planned:
        record |= plan(shape, drawn, [name for name in wanted if name not in NOT_PLANNED])
    else:
        record |= measure(shape, drawn, wanted, device=device, rounds=rounds, seed=seed)
    write_record(record, out)
    return record


def _known(methods: Sequence[str]) -> list[str]:
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise UserError(f"--methods {unknown[0]}: no such method; allowed: {', '.join(METHODS)}")
    return [name for name in METHODS if not methods or name in methods]


def _settings(shape: Shape) -> dict[str, Any]:
    return {
        "model_type": shape.model_type,
        "config": dict(shape.config),
        "dtype": str(shape.dtype).removeprefix("torch."),
        "batch_size": shape.batch_size,
        "sequence_length": shape.sequence_length,
        "gradient_checkpointing": shape.checkpointing,
        "optimizer": {
            "name": "adamw",
            "fused": True,
            "weight_decay": WEIGHT_DECAY,
            "learning_rate": LEARNING_RATE,
        },
        "whole_weights": "shared, learning rate 0" if shape.large else "own copies",
    }


def plan(shape: Shape, neurons: Tensor, methods: Sequence[str]) -> dict[str, Any]:
    """The exact bytes of a step from a run of the model on the meta device; no time."""
    device = torch.device("meta")
    base, batch = build_model(shape, device, 0), random_batch(shape, device, 0)
    found: dict[str, dict[str, Any]] = {}
    with all_scored():
        for name in progress(list(methods), "Planning", unit="methods"):
            made = _contender(name, shape, base, neurons)
            found[name] = _costs(shape, name, made, made.measure(batch), neurons)
    return {"methods": found, **recorded_ratios({})}


def measure(
    shape: Shape,
    neurons: Tensor,
    methods: Sequence[str],
    *,
    device: torch.device,
    rounds: int,
    seed: int,
) -> dict[str, Any]:
    """Bytes and times of all methods; one that needs more memory than there is says so."""
    base, batch = build_model(shape, device, seed), random_batch(shape, device, seed)
    found: dict[str, dict[str, Any]] = {}
    ready: dict[str, Contender] = {}
    for name in progress(list(methods), "Memory of a step", unit="methods"):
        made = _fitting(name, shape, base, neurons, batch)
        if made is None:
            found[name] = {"what": METHODS[name], "fits": False}
        else:
            ready[name], costs = made
            found[name] = costs
    seconds = interleave(
        {name: _turn(made, batch) for name, made in ready.items()},
        rounds=rounds,
        warmup=WARMUP_ROUNDS,
        seed=seed,
        device=device,
        description="Training steps",
        between=_moments_in_turn(ready, batch) if shape.large else lambda name: None,
    )
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    for name, made in ready.items():
        found[name] |= _speed(seconds[name], shape.num_tokens, found[name]["model_flops"], peak)
        with torch.no_grad():
            found[name]["loss_last"] = float(made.forward(batch))
    return {"methods": found, **recorded_ratios(seconds)}


def _contender(name: str, shape: Shape, base: PreTrainedModel, neurons: Tensor) -> Contender:
    return contender(
        name,
        base,
        neurons,
        learning_rate=LEARNING_RATE,
        own_weights=not shape.large,
        checkpointing=shape.checkpointing,
    )


def _fitting(
    name: str, shape: Shape, base: PreTrainedModel, neurons: Tensor, batch: Batch
) -> tuple[Contender, dict[str, Any]] | None:
    """A method that has taken its first steps, and what they cost; None where memory ran out."""
    try:
        made = _contender(name, shape, base, neurons)
        with torch.no_grad():
            loss = float(made.forward(batch))
        costs = _costs(shape, name, made, made.measure(batch), neurons) | {"loss_first": loss}
        if shape.large and name in _HEAVY:
            made.optimizer.state.clear()
    except torch.OutOfMemoryError:
        costs = None
    if costs is None:
        made = None
        gc.collect()
        torch.cuda.empty_cache()
        return None
    return made, costs


def _costs(shape: Shape, name: str, made: Contender, cost: StepBytes, neurons: Tensor) -> dict[str, Any]:
    first = int(neurons[0, 0]) if name in ("sparse", "clone", "masked", "compact") else 0
    return {
        "what": METHODS[name],
        "fits": True,
        "trained_weights": made.num_trained,
        "model_flops": model_flops(shape, name, num_trained=made.num_trained, first_layer=first),
        **asdict(cost),
    }


def _turn(made: Contender, batch: Batch) -> Callable[[], None]:
    def step() -> None:
        made.step(batch)

    return step


def _moments_in_turn(ready: dict[str, Contender], batch: Batch) -> Callable[[str], None]:
    """Before each turn: gives a heavy method its moments by an untimed step, takes them from the others."""

    def prepare(name: str) -> None:
        for heavy in _HEAVY:
            if heavy in ready and heavy != name:
                ready[heavy].optimizer.state.clear()
        if name in _HEAVY:
            ready[name].step(batch)

    return prepare


def _speed(seconds: Sequence[float], num_tokens: int, flops: int, peak: float | None) -> dict[str, Any]:
    spread = Spread.of(seconds)
    return {
        "seconds": asdict(spread),
        "tokens_per_second": num_tokens / spread.median,
        "model_flops_utilisation": None if peak is None else flops / spread.median / peak,
    }
