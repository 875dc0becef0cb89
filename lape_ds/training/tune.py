"""`lape-ds tune`: the plan's few best candidates run for some steps on this machine, through the real launcher.

After the plan. A candidate that runs out of memory is a result like any other; the recipe's own run is not touched.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from lape_ds.distributed.launch import launcher_command, slots_of_workers
from lape_ds.distributed.launchers import slurm
from lape_ds.distributed.launchers.running import run_launchers
from lape_ds.distributed.stopping import STOPPED
from lape_ds.errors import UserError
from lape_ds.recipe import Recipe, load_recipe
from lape_ds.runlog import readable_bytes, surroundings
from lape_ds.training.main import OUT_OF_MEMORY
from lape_ds.training.metrics import read_metrics
from lape_ds.training.plan.candidates import Candidate, Setting
from lape_ds.training.plan.cluster import this_machine
from lape_ds.training.plan.command import keep_setting, make_plans
from lape_ds.training.plan.fits import REFUSAL
from lape_ds.training.plan.methods import name_of, subject
from lape_ds.writing import write_json

SCHEMA_VERSION = 1
# In which kernels are chosen, the allocator's cache grows, and ZeRO-3 learns the order of modules.
WARMUP_STEPS = 2
# How far losses of the same step may be apart, as a share: sums in another order, in each dtype.
_SAME_LOSS = {"float32": 1e-4, "bfloat16": 2e-2}
_KILLED = 128 + 9  # SIGKILL, as a shell tells it: what Linux does when memory runs out


@dataclass(frozen=True)
class Trial:
    """One candidate's run.

    Attributes:
        setting: What was set.
        planned_bytes: The plan's peak of one GPU.
        tokens_per_second: Median over the timed steps; None if it did not get there.
        seconds_per_step: Of these steps, in order.
        losses: Of all steps, warm-up included.
        failure: Why it has none; None if it ran.
    """

    setting: Setting
    planned_bytes: int
    tokens_per_second: float | None
    seconds_per_step: list[float]
    losses: list[float]
    failure: str | None


def tune_command(
    recipe: Recipe,
    recipe_path: str,
    overrides: Sequence[str],
    *,
    candidates: int,
    steps: int,
    apply: bool,
    json_file: Path | None,
) -> None:
    """Runs the candidates, prints a table, writes the record, and the fastest into the recipe if asked to.

    Args:
        recipe: As loaded from the next two.
        recipe_path: The recipe's file, for the ranks.
        overrides: `key=value`, for the ranks.
        candidates: How many of the plan's best.
        steps: Timed ones of each.
        apply: Writes the fastest into the recipe.
        json_file: The record; None: `tune.json` in the scratch folder.

    Raises:
        UserError: There are several nodes, the plan finds nothing that fits, no candidate ran, or their losses differ.
    """
    if slurm.num_nodes() > 1:
        raise UserError(
            f"`lape-ds tune` measures on one machine, and this Slurm job has {slurm.num_nodes()} nodes: run it in a job of one "
            "node, and take `lape-ds plan --gpus` for several"
        )
    chosen = best_candidates(recipe, candidates)
    trials = run_trials(recipe, recipe_path, overrides, chosen, steps=steps)
    difference = largest_difference(trials)
    out = json_file or scratch_folder(recipe) / "tune.json"
    write_json(out, _record(recipe, trials, difference))
    _show(recipe, trials, difference)
    print(f"written to {out}")
    fastest = fastest_of(trials)
    if fastest is None:
        raise UserError(f"no candidate ran to its end: see {scratch_folder(recipe)}/*.log")
    if difference > _SAME_LOSS[recipe.model.dtype]:
        raise UserError(
            f"losses of the same steps are up to {100 * difference:.2g} % apart: the candidates did not train the same; nothing "
            "is applied"
        )
    print(f"fastest: {' '.join(fastest.setting.overrides)}: {_outcome(fastest)}")
    if apply:
        keep_setting(fastest.setting, recipe_path)


def best_candidates(recipe: Recipe, number: int) -> list[Candidate]:
    """The plan's best for the recipe's method on this machine, each of another stage, offload, micro-batch or checkpointing.

    Raises:
        UserError: Nothing fits.
    """
    cluster = this_machine(recipe.launch.num_ranks)
    (plan,) = make_plans(subject(recipe), [cluster], [name_of(recipe.train)])
    ranked = plan.ranked(name_of(recipe.train))
    if not ranked:
        raise UserError(f"by the plan nothing fits on {cluster}; see `lape-ds plan` for what it would take")
    return ranked[:number]


def scratch_folder(recipe: Recipe) -> Path:
    """Beside the runs' own folders, which are not touched."""
    return recipe.output_dir / "train" / "tune"


def run_trials(
    recipe: Recipe,
    recipe_path: str,
    overrides: Sequence[str],
    candidates: Sequence[Candidate],
    *,
    steps: int,
) -> list[Trial]:
    """Each through the launcher, one after another, with the recipe's text, neurons and global batch.

    Raises:
        UserError: What a rank says of the recipe.
        SystemExit: After a signal.
    """
    trials = []
    for number, candidate in enumerate(candidates):
        print(f"{number + 1} of {len(candidates)}: {' '.join(candidate.setting.overrides)}", file=sys.stderr)
        trials.append(_run(recipe, recipe_path, overrides, candidate, name=f"tune/{number}", steps=steps))
        print(f"  {_outcome(trials[-1])}", file=sys.stderr)
    return trials


def _run(
    recipe: Recipe, path: str, overrides: Sequence[str], candidate: Candidate, *, name: str, steps: int
) -> Trial:
    setting = candidate.setting
    total = WARMUP_STEPS + steps
    scratch = [
        f"train.run_name={name}",
        "train.resume=never",
        f"train.max_steps={total}",
        "train.schedule={name: constant}",
        f"train.heldout={{every_steps: {total}, tokens_per_language: 1}}",
        f"train.checkpoint_every_steps={total}",
        "train.tensorboard=false",
        "train.wandb=null",
    ]
    arguments = [path, *overrides, *scratch, *setting.overrides]
    run_dir = load_recipe(path, arguments[1:]).run_dir
    shutil.rmtree(run_dir, ignore_errors=True)
    log = scratch_folder(recipe) / f"{Path(name).name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    (slots,) = slots_of_workers(1, setting.num_ranks)
    code = run_launchers([launcher_command(slots, ["--trial", *arguments])], logs=[log])
    text = log.read_text(encoding="utf-8", errors="replace")
    failure = _failure(code, text, log)
    lines = [] if failure else [line for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]
    timed = lines[WARMUP_STEPS:]
    if not failure and not timed:
        failure = f"the text gives only {len(lines)} steps, {WARMUP_STEPS} of which are warm-up"
    speed = None if failure else statistics.median(line["tokens_per_second"] for line in timed)
    shutil.rmtree(run_dir, ignore_errors=True)
    losses = [line["loss"] for line in lines]
    return Trial(setting, candidate.peak, speed, [line["seconds"] for line in timed], losses, failure)


def _failure(code: int, log_text: str, log: Path) -> str | None:
    """Why a candidate has no speed: not memory enough, or something else that its log tells. None if it ran.

    Raises:
        UserError: The recipe must be mended, which no candidate would survive.
        SystemExit: After a signal.
    """
    if code == 0:
        return None
    if code == STOPPED:
        raise SystemExit(code)
    told = [line for line in log_text.splitlines() if line.startswith(OUT_OF_MEMORY)]
    if told:
        return told[0]
    if code == _KILLED:
        return f"killed, as Linux does when memory runs out (see {log})"
    mistakes = [line for line in log_text.splitlines() if line.startswith("error: ")]
    refused = [line for line in mistakes if line.endswith(REFUSAL)]
    if refused:  # there is less room than when the plan was made
        return f"not begun: {refused[0].removeprefix('error: ')}"
    if code == 2 and mistakes:
        raise UserError(mistakes[0].removeprefix("error: "))
    return f"ended with exit code {code} (see {log})"


def largest_difference(trials: Sequence[Trial]) -> float:
    """Of losses of the same step, as a share of the loss: every candidate takes the same steps with the same batches."""
    steps = zip(*(trial.losses for trial in trials if trial.failure is None), strict=True)
    return max(((max(losses) - min(losses)) / max(losses) for losses in steps), default=0.0)


def fastest_of(trials: Sequence[Trial]) -> Trial | None:
    """The one with the most tokens per second; None if none ran."""
    ran = [trial for trial in trials if trial.tokens_per_second is not None]
    return max(ran, key=lambda trial: trial.tokens_per_second or 0.0, default=None)


def _outcome(trial: Trial) -> str:
    return trial.failure or f"{trial.tokens_per_second:,.0f} tokens/s"


def _record(recipe: Recipe, trials: Sequence[Trial], difference: float) -> dict[str, Any]:
    fastest = fastest_of(trials)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "tune",
        "measured": True,
        "command": " ".join(["lape-ds", *sys.argv[1:]]),
        **surroundings(),
        "recipe": recipe.model_dump(mode="json"),
        "warmup_steps": WARMUP_STEPS,
        "largest_loss_difference": difference,
        "fastest": None if fastest is None else fastest.setting.keys(),
        "trials": [asdict(trial) for trial in trials],
    }


def _show(recipe: Recipe, trials: Sequence[Trial], difference: float) -> None:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("ZeRO", "on host", "micro batch", "recompute", "ranks", "planned", "tokens/s"):
        table.add_column(heading, justify="right")
    fastest = fastest_of(trials)
    for trial in trials:
        one = trial.setting
        cells = [
            str(one.zero_stage),
            one.offload,
            f"{one.micro_batch_size}x{one.accumulation}",
            one.checkpointing,
        ]
        cells += [str(one.num_ranks), readable_bytes(trial.planned_bytes), _outcome(trial)]
        table.add_row(*cells, style="bold green" if trial is fastest else "red" if trial.failure else "")
    console = Console()
    console = console if console.is_terminal else Console(width=100)
    console.print(table)
    allowed = _SAME_LOSS[recipe.model.dtype]
    verdict = (
        "as rounding allows" if difference <= allowed else f"more than the {100 * allowed:g} % of rounding"
    )
    console.print(
        f"losses of the same step are at most {100 * difference:.2g} % apart: {verdict}", highlight=False
    )
