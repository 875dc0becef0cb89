"""A record as a table: on the terminal, and in Markdown for the README.

Between the record and its readers; nothing is measured here, and both tables say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from lape_ds.markdown import markdown_table
from lape_ds.runlog import readable_bytes, readable_count

Record = Mapping[str, Any]


def show(record: Record) -> None:
    """Prints the tables; made for a terminal of 90 columns, so quartiles go below their median."""
    console = Console()
    if not console.is_terminal:  # rich would cut a log at 80 columns
        console = Console(width=100)
    for title, headings, rows in _tables(record):
        table = Table(title=title, title_justify="left", box=SIMPLE, collapse_padding=True)
        for number, heading in enumerate(headings):
            table.add_column(heading, justify="right" if number else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(cell.replace(" (", "\n").rstrip(")") for cell in row))
        console.print(table)
    console.print(_where(record), style="dim", highlight=False)


def markdown(record: Record) -> str:
    """The same tables, with what they were measured on below."""
    parts = [f"**{title}**\n\n{markdown_table(headings, rows)}" for title, headings, rows in _tables(record)]
    return "\n\n".join([*parts, f"`{record['command']}`: {_where(record)}"]) + "\n"


def _where(record: Record) -> str:
    hardware, versions = record["hardware"], record["versions"]
    device = ", ".join(hardware["gpus"]) or f"{hardware['cpu']}, {hardware['threads']} threads"
    return f"{device}; torch {versions['torch']}, peft {versions['peft']}; {record['date'][:10]}"


def _tables(record: Record) -> list[tuple[str, list[str], list[list[str]]]]:
    if record["kind"] == "bench select":
        return [_select_table(record)]
    if record["kind"] == "bench pack":
        return _pack_tables(record)
    return _identify_tables(record) if record["kind"] == "bench identify" else [_train_table(record)]


def _train_table(record: Record) -> tuple[str, list[str], list[list[str]]]:
    settings = record["settings"]
    title = (
        f"{settings['shape']}, {settings['neurons']} neurons, {settings['dtype']}, {settings['batch_size']} x "
        f"{settings['sequence_length']} tokens"
    )
    if settings["gradient_checkpointing"]:
        title += ", checkpointing"
    columns = _SPEED_COLUMNS if record["measured"] else _PLAN_COLUMNS
    if not record["hardware"]["gpus"]:  # a CPU's peak is not known
        columns = {heading: cell for heading, cell in columns.items() if heading != "MFU"}
    title += "" if record["measured"] else ": PLAN, nothing was run"
    headings = ["method", *columns, *_BYTE_COLUMNS]
    rows = []
    for name, found in record["methods"].items():
        if not found["fits"]:
            rows.append([name, "does not fit", *[""] * (len(headings) - 2)])
            continue
        speed = [cell(record, name) for cell in columns.values()]
        rows.append([name, *speed, *[cell(found) for cell in _BYTE_COLUMNS.values()]])
    return title, headings, rows


def _against(other: str) -> Callable[[Record, str], str]:
    def cell(record: Record, name: str) -> str:
        if name == other:
            return "1"
        ratio = record["ratios"][name].get(other)
        if ratio is None:
            return "–"
        lower, upper = record["ratio_quartiles"][name][other]
        return f"{ratio:.2f} ({lower:.2f}–{upper:.2f})"

    return cell


def _flops_against_full(record: Record, name: str) -> str:
    full = record["methods"].get("full")
    return f"{record['methods'][name]['executed_flops'] / full['executed_flops']:.2f}" if full else "–"


def _utilisation(record: Record, name: str) -> str:
    value = record["methods"][name]["model_flops_utilisation"]
    return "–" if value is None else f"{100 * value:.0f} %"


_SPEED_COLUMNS: dict[str, Callable[[Record, str], str]] = {
    "tokens/s": lambda record, name: f"{record['methods'][name]['tokens_per_second']:,.0f}",
    "× full": _against("full"),
    "× floor": _against("floor"),
    "MFU": _utilisation,
}
_PLAN_COLUMNS: dict[str, Callable[[Record, str], str]] = {"FLOPs / full's": _flops_against_full}
_BYTE_COLUMNS: dict[str, Callable[[Record], str]] = {
    "saved": lambda found: readable_bytes(found["saved_for_backward"]),
    "grads": lambda found: readable_bytes(found["gradients"]),
    "moments": lambda found: readable_bytes(found["optimizer_state"]),
    "peak": lambda found: readable_bytes(found["peak"]),
    "trained": lambda found: readable_count(found["trained_weights"]),
}


def _identify_tables(record: Record) -> list[tuple[str, list[str], list[list[str]]]]:
    settings = record["settings"]
    tables = []
    for dtype, found in record["dtypes"].items():
        title = f"Counting: {settings['shape']}, {dtype}, {settings['batch_size']} x {settings['sequence_length']} tokens"
        rows = [
            [
                name,
                f"{one['tokens_per_second']:,.0f}",
                _against("floor")(found, name),
                readable_bytes(one["peak"]),
            ]
            for name, one in found["methods"].items()
        ]
        tables.append((title, ["way", "tokens/s", "× floor", "peak"], rows))
    for number, by_dtype in record.get("ranks", {}).items():
        title = f"Counting on {number} ranks at once: {settings['shape']}"
        rows = [
            [name, dtype, f"{one['tokens_per_second']:,.0f}", _against("floor")(found, name)]
            for dtype, found in by_dtype.items()
            for name, one in found["methods"].items()
        ]
        tables.append((title, ["way", "dtype", "tokens/s of all", "× floor"], rows))
    return tables


def _select_table(record: Record) -> tuple[str, list[str], list[list[str]]]:
    settings = record["settings"]
    title = f"Selection: {settings['languages']} languages, {settings['layers']} x {settings['neurons_per_layer']} neurons"
    rows = [
        [
            name,
            f"{found['seconds']['median']:.1f} ({found['seconds']['lower']:.1f}–{found['seconds']['upper']:.1f})",
            readable_bytes(found["held"]),
            readable_bytes(found["peak"]),
        ]
        for name, found in record["methods"].items()
    ]
    return title, ["method", "seconds", "before", "peak"], rows


def _pack_tables(record: Record) -> list[tuple[str, list[str], list[list[str]]]]:
    settings = record["settings"]
    times = [[name, _milliseconds(spread)] for name, spread in record["turns"].items()]
    times += [
        [f"forward with {name}", _milliseconds(spread)]
        for name, spread in zip(("pack", "LoRA beside the weights"), record["forward"].values(), strict=True)
    ]
    what = f"pack of {settings['neurons']} neurons, LoRA r {settings['lora_r']} on feed-forward weights"
    sizes = [
        [name, f"{found['neurons']:,}", readable_bytes(found["pack"]), readable_bytes(found["lora"])]
        for name, found in record["sizes"].items()
    ]
    return [
        (f"{settings['shape']}, {settings['dtype']}: {what}", ["turn", "ms"], times),
        ("Files, nothing of the large shapes was run", ["shape", "neurons", "pack", "LoRA"], sizes),
    ]


def _milliseconds(spread: Mapping[str, float]) -> str:
    lower, median, upper = (f"{1000 * spread[key]:.3g}" for key in ("lower", "median", "upper"))
    return f"{median} ({lower}–{upper})"
