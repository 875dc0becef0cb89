"""A plan as people read it: on the terminal and in Markdown, from the same rows; and as JSON, with every candidate.

Last on the plan's way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from lape_ds.recipe import Recipe
from lape_ds.runlog import readable_bytes
from lape_ds.training.plan import cluster as assumed
from lape_ds.training.plan.candidates import Candidate, best_of
from lape_ds.training.plan.cluster import GIGA, Cluster
from lape_ds.training.plan.methods import METHODS, Subject, name_of

SCHEMA_VERSION = 1
_WIDTH = 100  # of a log or a file
_ROWS_OF_THE_RECIPES = 3
_ROWS_OF_OTHERS = 2
_ON_HOST = {"–": "{}", "optimizer": "{} states", "weights": "{} weights", "optimizer+weights": "{} both"}


@dataclass(frozen=True)
class Plan:
    """All candidates on one cluster.

    Attributes:
        subject: What is planned.
        cluster: On which machines.
        candidates: Of all methods.
        tokens: That the recipe trains on; None where only its text will tell.
    """

    subject: Subject
    cluster: Cluster
    candidates: Sequence[Candidate]
    tokens: int | None

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.subject.recipe

    def ranked(self, method: str) -> list[Candidate]:
        """Those of a method that fit, best first."""
        return best_of((one for one in self.candidates if one.method == method), self.recipe)

    @property
    def best(self) -> Candidate | None:
        """For the recipe's own method; None if nothing fits."""
        return next(iter(self.ranked(name_of(self.recipe.train))), None)

    def rows(self, *, everything: bool) -> list[Candidate]:
        """What the table shows."""
        shown: list[Candidate] = []
        for method in METHODS:
            own = [one for one in self.candidates if one.method == method]
            ranked = self.ranked(method)
            if everything:
                shown += [*ranked, *sorted((one for one in own if not one.fits), key=lambda one: one.peak)]
                continue
            limit = _ROWS_OF_THE_RECIPES if method == name_of(self.recipe.train) else _ROWS_OF_OTHERS
            distinct: dict[tuple[int, str], Candidate] = {}
            for one in ranked:
                distinct.setdefault((one.setting.zero_stage, one.setting.offload), one)
            shown += list(distinct.values())[:limit] or [min(own, key=lambda one: one.peak)]
        return shown


def show(plan: Plan, *, everything: bool, console: Console | None = None) -> None:
    """Prints a plan; made for 100 columns, and to be read at 80."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    for line in _head(plan):
        console.print(line, highlight=False)
    table = Table(box=SIMPLE, padding=0, show_edge=False)
    columns = {
        heading: cell
        for heading, cell in _COLUMNS.items()
        if console.width >= _WIDTH or heading not in _ONLY_WHEN_WIDE
    }
    for heading in columns:
        left = heading in ("method", "ZeRO,\non host")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    method = ""
    for one in plan.rows(everything=everything):
        if method and one.method != method:
            table.add_section()
        cells = [cell(plan, one) for cell in columns.values()]
        table.add_row(*(cells if one.method != method else ["", *cells[1:]]), style=_style(plan, one))
        method = one.method
    console.print(table)
    console.print()
    for line in [*_misfits(plan), *_conclusion(plan)]:
        console.print(line, highlight=False)
    console.print(_assumptions(plan), style="dim", highlight=False)


def _style(plan: Plan, candidate: Candidate) -> str:
    if candidate is plan.best:
        return "bold green"
    return "" if candidate.fits else "red"


def markdown(plan: Plan, *, everything: bool) -> str:
    """The same in Markdown."""
    headings = list(_COLUMNS)
    lines = [
        f"### {plan.cluster}: PLAN, nothing was run",
        "",
        "| " + " | ".join(heading.replace("-\n", "").replace("\n", " ") for heading in headings) + " |",
        "| --- |" + " ---: |" * (len(headings) - 1),
    ]
    for one in plan.rows(everything=everything):
        cells = [cell(plan, one).replace("\n", " ") for cell in _COLUMNS.values()]
        bold = [f"**{cell}**" for cell in cells] if one is plan.best else cells
        lines.append("| " + " | ".join(bold) + " |")
    notes = [*_misfits(plan), *_conclusion(plan)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def markdown_file(plans: Sequence[Plan], *, command: str, everything: bool) -> str:
    """Several clusters in one file, with what they have in common said once."""
    first = plans[0]
    parts = [
        f"**{_subject_line(first)}: PLAN, nothing was run.** All sizes in GB (10^9 bytes): of the fullest GPU, and of "
        "each node's own memory (host).",
        "",
    ]
    parts += [f"Neurons: {first.subject.source}. {_assumptions(first)}", ""]
    parts += [markdown(plan, everything=everything) for plan in plans]
    return "\n".join([*parts, f"`{command}`", ""])


def as_json(plans: Sequence[Plan], *, command: str) -> dict[str, Any]:
    """Everything, for other programs."""
    first = plans[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "plan",
        "measured": False,
        "command": command,
        "recipe": first.recipe.model_dump(mode="json"),
        "neurons": {"number": len(first.subject.neurons), "source": first.subject.source},
        "assumptions": _constants(),
        "plans": [_plan_json(plan) for plan in plans],
    }


def _plan_json(plan: Plan) -> dict[str, Any]:
    def one(candidate: Candidate) -> dict[str, Any]:
        more = {"fits": candidate.fits, "tokens_per_second": candidate.tokens_per_second}
        return {**asdict(candidate), **more}

    return {
        "cluster": {**asdict(plan.cluster), "usable": plan.cluster.usable},
        "tokens": plan.tokens,
        "best": None if plan.best is None else one(plan.best),
        "candidates": [one(candidate) for candidate in plan.candidates],
    }


def _constants() -> dict[str, float]:
    names = [name for name in vars(assumed) if name.endswith("BANDWIDTH") or name.startswith("RESERVED")]
    return {name.lower(): getattr(assumed, name) for name in [*names, "UTILISATION"]}


def _subject_line(plan: Plan) -> str:
    recipe, size = plan.recipe, sum(param.numel() for param in plan.subject.skeleton.parameters())
    return f"{recipe.name}: {size / GIGA:.3g} G weights in {recipe.model.dtype}, blocks of {recipe.train.block_length} tokens"


def _head(plan: Plan) -> list[str]:
    first = plan.candidates[0]
    blocks = first.tokens // plan.recipe.train.block_length
    return [
        f"[bold]{_subject_line(plan)}[/bold]",
        f"on {plan.cluster} ({plan.cluster.usable / GIGA:.1f} GB of each for tensors): {blocks} blocks a step, "
        f"ranks: {plan.cluster.num_ranks}; sizes in GB",
        f"neurons: {plan.subject.source}",
        "",
    ]


def _gb(*kinds: str) -> Callable[[Plan, Candidate], str]:
    def cell(plan: Plan, candidate: Candidate) -> str:
        size = sum(candidate.gpu[kind] for kind in kinds) / GIGA
        return "–" if size == 0 else _number(size)

    return cell


def _number(size: float) -> str:
    return "<0.1" if size < 0.05 else f"{size:.1f}" if size < 100 else f"{size:,.0f}"


def _speed(plan: Plan, candidate: Candidate) -> str:
    return f"{candidate.tokens_per_second:,.0f}" if candidate.fits else "too big"


def _hours(plan: Plan, candidate: Candidate) -> str:
    if not candidate.fits:
        return ""
    hours = (plan.tokens or 10**8) / candidate.tokens_per_second / 3600
    return f"{hours:.1f}" if hours < 100 else f"{hours:,.0f}"


# Sizes in GB. One layer's backward or a chunk of logits, whichever is larger: they do not meet.
_COLUMNS: dict[str, Callable[[Plan, Candidate], str]] = {
    "method": lambda plan, one: one.method,
    "ZeRO,\non host": lambda plan, one: _ON_HOST[one.setting.offload].format(one.setting.zero_stage),
    "batch": lambda plan, one: f"{one.setting.micro_batch_size}x{one.setting.accumulation}",
    "ckpt": lambda plan, one: "–" if one.setting.checkpointing == "none" else "yes",
    "weights": _gb("weights", "anchor"),
    "states": _gb("masters", "moments", "copied"),
    "grads": _gb("gradients"),
    "saved": _gb("activations"),
    "layer,\nlogits": lambda plan, one: _number(max(one.gpu["working"], one.gpu["logits"]) / GIGA),
    "buf-\nfers": _gb("gathers", "buckets"),
    "peak": lambda plan, one: _number(one.peak / GIGA),
    "host": lambda plan, one: "–" if not one.host else _number(one.host / GIGA),
    "sent": lambda plan, one: "–" if not one.communication else _number(one.communication / GIGA),
    "tok/s": _speed,
    "hours": _hours,
}
_ONLY_WHEN_WIDE = (
    "ckpt",
    "layer,\nlogits",
    "sent",
    "hours",
)  # a narrower terminal does without


def _misfits(plan: Plan) -> list[str]:
    """For every method, the stages that do not fit, with what is in the way."""
    lines = []
    for method in METHODS:
        told = []
        for stage in (0, 1, 2, 3):
            own = [one for one in plan.candidates if one.method == method and one.setting.zero_stage == stage]
            if not own or any(one.fits for one in own):
                continue
            told.append(_least(own))
        if told:
            lines.append(f"{method} needs at least {', '.join(told)}")
    return lines


def _least(candidates: Sequence[Candidate]) -> str:
    """What those of one stage, none of which fits, take at the least."""
    by_host = [one for one in candidates if one.peak <= one.usable]  # the node's memory is in the way
    if by_host:
        least = min(by_host, key=lambda one: one.host)
        return f"{readable_bytes(least.host)} of host memory with ZeRO {least.setting.zero_stage}"
    least = min(candidates, key=lambda one: one.peak)
    kind = max(least.gpu, key=lambda kind: least.gpu[kind])
    return f"{readable_bytes(least.peak)} with ZeRO {least.setting.zero_stage} ({kind} {readable_bytes(least.gpu[kind])})"


def _conclusion(plan: Plan) -> list[str]:
    method, best = name_of(plan.recipe.train), plan.best
    if best is None:
        return [f"nothing fits for {method}: take more or larger GPUs, or another method"]
    host = f", {readable_bytes(best.host)} of host memory on each node" if best.host else ""
    return [
        f"best for {method}: {' '.join(best.setting.overrides)}: {readable_bytes(best.peak)} of "
        f"{readable_bytes(best.usable)}{host}"
    ]


def _assumptions(plan: Plan) -> str:
    per = (
        f"{plan.tokens / 1e6:,.3g} M tokens, the recipe's"
        if plan.tokens
        else "100 M tokens: the recipe takes all there are"
    )
    peak = plan.cluster.flops(2 if plan.recipe.model.dtype == "bfloat16" else 4) / 1e12
    return (
        f"Bytes are counted; speeds are estimates, good for an order: {peak:.3g} TFLOP/s a GPU "
        f"({100 * assumed.UTILISATION:.0f} % of its peak), {assumed.NODE_BANDWIDTH / GIGA:.0f} GB/s between GPUs of a node, "
        f"{assumed.NETWORK_BANDWIDTH / GIGA:.0f} between nodes, {assumed.HOST_BANDWIDTH / GIGA:.0f} to the host, nothing "
        f"overlapping. Hours for {per}. Kept free: {100 * assumed.RESERVED_SHARE:.0f} % and "
        f"{readable_bytes(assumed.RESERVED_BYTES)}."
    )
