"""`lape-ds bench …`: methods and counting, measured side by side.

Beside cli.py, which has the other commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lape_ds.cli_arguments import listed

bench_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

ShapeOption = Annotated[
    str | None,
    typer.Option(help="cpu-100m, llama-3.1-8b or mistral-nemo-12b; by default what the machine can hold."),
]
RoundsOption = Annotated[int, typer.Option(min=1, help="Counted rounds; two more go before them.")]
SeedOption = Annotated[int, typer.Option(help="Of weights, tokens, neurons and orders.")]
OutOption = Annotated[
    Path, typer.Option(metavar="FILE.json", help="The record; its Markdown table goes beside it.")
]


@bench_app.command("train")
def bench_train(
    shape: ShapeOption = None,
    neurons: Annotated[str, typer.Option(help="uniform-1%, or mt: Maltese as published.")] = "uniform-1%",
    methods: Annotated[str | None, typer.Option(help="Comma-separated; all if not given.")] = None,
    rounds: RoundsOption = 12,
    seed: SeedOption = 0,
    out: OutOption = Path("bench-train.json"),
) -> None:
    """Time a whole training step of every method in interleaved rounds, and tell what each keeps in memory.

    Example: lape-ds bench train --neurons mt --out mt.json
    """
    from lape_ds.bench.tables import show
    from lape_ds.bench.train import bench_train

    show(bench_train(shape, neurons=neurons, methods=listed(methods), rounds=rounds, seed=seed, out=out))


@bench_app.command("identify")
def bench_identify(
    shape: ShapeOption = None,
    ranks: Annotated[int, typer.Option(min=1, help="Also on so many ranks at once, if more than one.")] = 1,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Of the weights; by default both, of large shapes bfloat16."),
    ] = None,
    rounds: RoundsOption = 8,
    seed: SeedOption = 0,
    out: OutOption = Path("bench-identify.json"),
) -> None:
    """Time counting beside a bare forward pass and a plain loop with hooks.

    Example: lape-ds bench identify --ranks 2 --out identify.json
    """
    import torch

    from lape_ds.bench.identify import bench_identify
    from lape_ds.bench.tables import show

    chosen = None if dtype is None else getattr(torch, dtype)
    show(bench_identify(shape, rounds=rounds, seed=seed, out=out, num_ranks=ranks, dtype=chosen))


@bench_app.command("pack")
def bench_pack(
    shape: ShapeOption = None,
    neurons: Annotated[str, typer.Option(help="mt: Maltese as published, or uniform-1%.")] = "mt",
    rounds: RoundsOption = 12,
    seed: SeedOption = 0,
    out: OutOption = Path("bench-pack.json"),
) -> None:
    """Set a language pack beside LoRA's adapter: size, time to load and to swap, cost of a forward pass.

    Example: lape-ds bench pack --out packs.json
    """
    from lape_ds.bench.packs import bench_pack
    from lape_ds.bench.tables import show

    show(bench_pack(shape, neurons=neurons, rounds=rounds, seed=seed, out=out))


@bench_app.command("select")
def bench_select(
    languages: Annotated[int, typer.Option(min=2, help="How many.")] = 300,
    layers: Annotated[int, typer.Option(min=1, help="Of the model.")] = 40,
    neurons_per_layer: Annotated[int, typer.Option(min=1, help="Its intermediate_size.")] = 14_336,
    rounds: Annotated[int, typer.Option(min=1, help="Selections of each method.")] = 3,
    seed: SeedOption = 0,
    out: OutOption = Path("bench-select.json"),
) -> None:
    """Time the selection of many languages' neurons from their counts, and tell how much memory it takes.

    Example: lape-ds bench select --languages 120 --out select.json
    """
    from lape_ds.bench.select import Size, bench_select
    from lape_ds.bench.tables import show

    size = Size(languages, layers, neurons_per_layer)
    show(bench_select(size, rounds=rounds, seed=seed, out=out))
