"""`lape-ds matrix plan`: what all trainings of a matrix would cost, by the plan that `lape-ds plan` makes for one.

Before anything runs; needs no GPU and no weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lape_ds.recipe import Matrix, MatrixModel, Recipe
from lape_ds.training.plan.candidates import Candidate, Setting
from lape_ds.training.plan.cluster import Cluster, parse_cluster, this_machine
from lape_ds.training.plan.command import make_plans
from lape_ds.training.plan.methods import name_of, subject
from lape_ds.writing import write_json

NOTHING = "–"
ASSUMED_TOKENS = 10**8  # of a run, as in `lape-ds plan`, where only the text will tell


@dataclass(frozen=True)
class Cost:
    """Of one method with one model, over all languages.

    Attributes:
        model: Its name.
        variant: The method.
        num_runs: Rates × seeds × languages.
        tokens: Of one run.
        setting: In words: the recipe's own, or the plan's best where by the plan that does not fit; None where nothing does.
        hours: Of one run on the planned GPUs; None where nothing fits.
    """

    model: str
    variant: str
    num_runs: int
    tokens: int
    setting: str | None
    hours: float | None


def plan_matrix(matrix: Matrix, *, gpus: str | None, json_file: Path | None) -> None:
    """Prints what every method costs with every model, and all together.

    Args:
        matrix: As loaded.
        gpus: Of one run, e.g. `1x80GB`; None: this machine's, `sweep.num_ranks` of them.
        json_file: Gets everything.

    Raises:
        UserError: A model is not there, or cannot be planned.
    """
    ranks = matrix.section.sweep.num_ranks or matrix.models[0].recipe.launch.num_ranks
    cluster = parse_cluster(gpus) if gpus is not None else this_machine(ranks)
    costs = [cost for model in matrix.models for cost in _costs(model, cluster)]
    _show(costs, cluster, workers=matrix.section.sweep.workers)
    if json_file is not None:
        content = {
            "schema_version": 1,
            "kind": "matrix plan",
            "measured": False,
            "command": " ".join(["lape-ds", *sys.argv[1:]]),
            "cluster": asdict(cluster),
            "costs": [asdict(cost) for cost in costs],
            "hours": total_hours(costs),
        }
        write_json(json_file, content)


def _costs(model: MatrixModel, cluster: Cluster) -> list[Cost]:
    first = model.languages[0]
    runs = {variant: first.runs_of(variant) for variant in first.variants}
    names = {variant: name_of(own[0].recipe.train) for variant, own in runs.items()}
    found = subject(runs[first.variants[0]][0].recipe)
    (plan,) = make_plans(found, [cluster], list(dict.fromkeys(names.values())))
    tokens, costs = plan.tokens or ASSUMED_TOKENS, []
    for variant, own in runs.items():
        best, told = _priced(plan.ranked(names[variant]), own[0].recipe)
        costs.append(
            Cost(
                model=model.name,
                variant=variant,
                num_runs=len(own) * len(model.languages),
                tokens=tokens,
                setting=told,
                hours=None if best is None else tokens / best.tokens_per_second / 3600,
            )
        )
    return costs


def _priced(ranked: Sequence[Candidate], recipe: Recipe) -> tuple[Candidate | None, str | None]:
    """What a variant will be run as, and how that is told; the best micro-batch where its own is not planned."""
    if not ranked:
        return None, None
    train, deepspeed = recipe.train, recipe.deepspeed
    asked = {
        "train.gradient_checkpointing": train.gradient_checkpointing,
        "deepspeed.zero_stage": deepspeed.zero_stage,
        "deepspeed.offload_optimizer": deepspeed.offload_optimizer,
        "deepspeed.offload_parameters": deepspeed.offload_parameters,
    }
    own = [one for one in ranked if asked.items() <= one.setting.keys().items()]
    exact = [one for one in own if one.setting.micro_batch_size == train.micro_batch_size]
    for candidate in (*exact, *own):
        return candidate, _setting(candidate.setting)
    return ranked[0], f"{_setting(ranked[0].setting)} (the recipe's does not fit)"


def _setting(setting: Setting) -> str:
    moved = "" if setting.offload == NOTHING else f", {setting.offload} on the host"
    return f"ZeRO {setting.zero_stage}{moved}"


def total_hours(costs: Sequence[Cost]) -> float:
    """Of all runs one after the other, of the methods that fit."""
    return sum(cost.num_runs * cost.hours for cost in costs if cost.hours is not None)


def _show(costs: Sequence[Cost], cluster: Cluster, *, workers: int) -> None:
    console = Console()
    gpus = "GPU" if cluster.gpu else "process"
    table = Table(title=f"PLAN, nothing was run: each run on {cluster}", title_justify="left")
    for heading in ("model", "method", "runs", "tokens", "setting", "hours a run", f"{gpus}-hours"):
        table.add_column(heading, justify="left" if heading in ("model", "method", "setting") else "right")
    for cost in costs:
        hours = ["does not fit", NOTHING, NOTHING]
        if cost.hours is not None:
            all_hours = cost.hours * cost.num_runs * cluster.num_ranks
            hours = [cost.setting or "", _hours(cost.hours), _hours(all_hours)]
        table.add_row(cost.model, cost.variant, str(cost.num_runs), f"{cost.tokens:,}", *hours)
    console.print(table)
    total = total_hours(costs)
    left_out = sum(cost.num_runs for cost in costs if cost.hours is None)
    runs = f"all runs but the {left_out} that do not fit" if left_out else "all runs"
    told = (
        f"{runs}: {_hours(total * cluster.num_ranks)} {gpus}-hours; one after the other {_hours(total)} hours"
    )
    beside = f", {_hours(total / workers)} with sweep.workers: {workers}" if workers > 1 else ""
    console.print(
        f"{told}{beside}. Identification and evaluation are not in it.", soft_wrap=True, highlight=False
    )


def _hours(hours: float) -> str:
    if hours < 0.01:
        return "< 0.01"
    return f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"
