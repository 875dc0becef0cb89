"""`lape-ds bench pack`: a pack beside LoRA's adapter: size on disk, time to load and to swap, and what a forward pass costs.

Beside the room's other commands. The pack is of random values in as many neurons as are asked for; LoRA is PEFT's, r 32 on the
feed-forward weights, as published (arXiv 2510.13580).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from lape_ds.bench.record import new_record, write_record
from lape_ds.bench.rounds import Spread, interleave, recorded_ratios
from lape_ds.bench.shapes import (
    Shape,
    build_model,
    check_runs,
    choose_shape,
    draw_neurons,
    find_shape,
    neurons_per_layer,
    random_batch,
)
from lape_ds.recipe import TrainSection
from lape_ds.subnetwork.adapters import add_adapter
from lape_ds.subnetwork.pack import PROJECTIONS, Pack, language
from lape_ds.subnetwork.vectors import Vectors, neuron_vectors

WARMUP_ROUNDS = 2
_LORA = TrainSection.model_validate({"method": "lora", "lora": {"r": 32, "dropout": 0, "targets": "ffn"}})
_FINGERPRINT = "0" * 64  # of random weights


def bench_pack(shape_name: str | None, *, neurons: str, rounds: int, seed: int, out: Path) -> dict[str, Any]:
    """Measures pack and adapter and writes the record, JSON and a Markdown table beside it.

    Sizes are those of files that are written: of the shape that runs and, without running them, of the large ones.

    Args:
        shape_name: Of `SHAPES`; None: the 100 M shape, or Llama-3.1-8B's where there is a GPU.
        neurons: As `neurons_per_layer` takes it.
        rounds: Counted ones; two more go before them.
        seed: Of weights, neurons and orders.
        out: The JSON file.

    Raises:
        UserError: No such shape or choice of neurons, or a shape that needs a GPU.
    """
    shape_name, shape, device = choose_shape(shape_name)
    check_runs(shape_name, shape, device)
    record = new_record("pack", measured=True)
    record["settings"] = {
        "shape": shape_name,
        "config": dict(shape.config),
        "dtype": str(shape.dtype).removeprefix("torch."),
        "batch_size": shape.batch_size,
        "sequence_length": shape.sequence_length,
        "neurons": neurons,
        "lora_r": _LORA.lora.r,
        "rounds": rounds,
        "warmup_rounds": WARMUP_ROUNDS,
        "seed": seed,
    }
    own = draw_neurons(neurons_per_layer(shape_name, neurons), shape.num_neurons, seed)
    record |= _measure(shape, own, device, rounds, seed)
    record["sizes"] = {name: _sizes(find_shape(name), name, neurons, seed) for name in _sized(shape_name)}
    write_record(record, out)
    return record


def _sized(shape_name: str) -> list[str]:
    return [shape_name, *(name for name in ("llama-3.1-8b", "mistral-nemo-12b") if name != shape_name)]


def _sizes(shape: Shape, name: str, neurons: str, seed: int) -> dict[str, int]:
    """Bytes on disk, of files of zeros: a model without weights says their names, shapes and dtypes."""
    model = build_model(shape, torch.device("meta"), seed)
    own = draw_neurons(neurons_per_layer(name, neurons), shape.num_neurons, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.safetensors")
        zeros: Vectors = {
            layer: {
                part: torch.zeros(
                    int((own[:, 0] == layer).sum()), shape.config["hidden_size"], dtype=shape.dtype
                )
                for part in PROJECTIONS
            }
            for layer in own[:, 0].unique().tolist()
        }
        _pack(own, zeros, zeros).save(path)
        pack_bytes = path.stat().st_size
        adapter = get_peft_model_state_dict(add_adapter(model, _LORA))
        save_file({key: torch.zeros(value.shape, dtype=value.dtype) for key, value in adapter.items()}, path)
        return {
            "neurons": len(own),
            "pack": pack_bytes,
            "lora": path.stat().st_size,
            "lora_weights": sum(value.numel() for value in adapter.values()),
        }


def _pack(neurons: Tensor, new: Vectors, base: Vectors) -> Pack:
    return Pack(neurons.int(), new, base, _FINGERPRINT, "random weights", (), {})


def _random_pack(model: PreTrainedModel, neurons: Tensor) -> Pack:
    base = neuron_vectors(model, neurons)
    new: Vectors = {
        layer: {part: torch.randn_like(values) * 0.02 for part, values in parts.items()}
        for layer, parts in base.items()
    }
    return _pack(neurons, new, base)


def _measure(shape: Shape, neurons: Tensor, device: torch.device, rounds: int, seed: int) -> dict[str, Any]:
    shape = replace(shape, checkpointing=False)
    model, twin = (build_model(shape, device, seed).eval() for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        path, adapter = Path(folder, "pack.safetensors"), Path(folder, "adapter")
        _random_pack(model, neurons).save(path)
        add_adapter(twin, _LORA).save_pretrained(str(adapter))
        adapted = PeftModel.from_pretrained(build_model(shape, device, seed).eval(), adapter, "first")
        merged = PeftModel.from_pretrained(build_model(shape, device, seed).eval(), adapter, "first")
        adapted.load_adapter(str(adapter), "second")
        turns = _turns(model, adapted.eval(), merged.eval(), path, adapter)
        batch = random_batch(shape, device, seed)

        def with_pack() -> None:
            with torch.inference_mode():
                model(input_ids=batch.input_ids, use_cache=False)

        def with_lora() -> None:
            with torch.inference_mode():
                adapted(input_ids=batch.input_ids, use_cache=False)

        timed = {
            kind: interleave(
                work,
                rounds=rounds,
                warmup=WARMUP_ROUNDS,
                seed=seed,
                device=device,
                description=description,
            )
            for kind, work, description in (
                ("turns", turns, "Loading and swapping"),
                ("forward", {"pack": with_pack, "lora": with_lora}, "Forward passes"),
            )
        }
    return {
        "turns": {name: asdict(Spread.of(taken)) for name, taken in timed["turns"].items()},
        "forward": {name: asdict(Spread.of(taken)) for name, taken in timed["forward"].items()},
        **recorded_ratios(timed["forward"]),
    }


def _turns(
    model: PreTrainedModel, adapted: PeftModel, merged: PeftModel, path: Path, adapter: Path
) -> dict[str, Callable[[], object]]:
    """What is timed: loading from the file into a model that is there, then a swap in and out again."""
    kept = Pack.load(path)

    def load_pack() -> None:
        with language(model, Pack.load(path)):
            pass

    def swap_pack() -> None:
        with language(model, kept):
            pass

    def load_lora() -> None:
        adapted.load_adapter(str(adapter), "loaded")
        adapted.delete_adapter("loaded")

    def swap_lora() -> None:
        adapted.set_adapter("second")
        adapted.set_adapter("first")

    def merge_lora() -> None:
        merged.base_model.merge_adapter()  # type: ignore[operator]
        merged.base_model.unmerge_adapter()  # type: ignore[operator]

    return {
        "load pack": load_pack,
        "load LoRA": load_lora,
        "swap pack": swap_pack,
        "swap LoRA, beside the weights": swap_lora,
        "swap LoRA, merged": merge_lora,
    }
