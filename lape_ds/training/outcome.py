"""What a training changed: held-out bits per byte before and after, read from its run folder.

After training and export; the closing table of the quickstart. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.recipe import Recipe
from lape_ds.training.metrics import read_metrics
from lape_ds.training.run_folder import EXPORT_MARKER, heldout_by_step

_ROUNDING = (
    5e-3  # bits per byte by which the base may differ between numbers of ranks and dtypes of the same text
)


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        run_dir: Its folder.
        before: Bits per byte by language before the first step.
        after: The same at the exported step.
        step: That step.
        facts: What `run.json` says.
        num_neurons: That were trained; None for methods that do not train neurons.
    """

    run_dir: Path
    before: dict[str, float]
    after: dict[str, float]
    step: int
    facts: dict[str, Any]
    num_neurons: int | None


def read_outcome(run_dir: Path) -> Outcome:
    """Reads an exported run.

    Raises:
        UserError: It was not trained to a checkpoint, not exported, or measured nothing.
    """
    export = run_dir / "model" / EXPORT_MARKER
    if not export.exists():
        raise UserError(f"{run_dir} has no exported model; run `lape-ds export {run_dir}` first")
    exported = json.loads(export.read_text(encoding="utf-8"))
    step, num_neurons = exported["step"], exported["num_neurons"]
    by_step = heldout_by_step(read_metrics(run_dir / "metrics.jsonl"))
    if 0 not in by_step or step not in by_step:
        raise UserError(
            f"{run_dir} was not measured at steps 0 and {step}; set train.heldout.every_steps to measure there"
        )
    facts = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    return Outcome(run_dir, by_step[0], by_step[step], step, facts, num_neurons)


def describe_heldout(run_dir: Path, languages: Sequence[str]) -> str:
    """What a finished run made of the held-out text of its trained languages: before, after, and at its best step.

    Args:
        run_dir: Its folder.
        languages: Those that it trained.
    """
    by_step = heldout_by_step(read_metrics(run_dir / "metrics.jsonl"))
    means = {step: _mean(bits, languages) for step, bits in by_step.items()}
    first, last, best = min(means), max(means), min(means, key=lambda step: means[step])
    name = find_language(languages[0]).name if len(languages) == 1 else f"mean of {len(languages)} languages"
    which = f"{means[best]:.4f} after step {best:,}, the best" if best else "no step was better than the base"
    return (
        f"held-out {name}, bits per byte: {means[first]:.4f} before, {means[last]:.4f} after step {last:,} "
        f"({'the best' if best == last else which})"
    )


def summarize(recipe: Recipe) -> None:
    """Prints the closing table of every exported run of a recipe.

    Raises:
        UserError: There is none.
    """
    folder = recipe.output_dir / "train"
    outcomes = [read_outcome(path.parent.parent) for path in folder.glob(f"*/model/{EXPORT_MARKER}")]
    outcomes.sort(
        key=lambda outcome: (outcome.facts["recipe"]["train"]["method"] == "random", outcome.run_dir.name)
    )
    if not outcomes:
        raise UserError(f"no exported run under {folder}; run `lape-ds train` and `lape-ds export` first")
    console = Console()
    alike = _measured_alike(recipe, outcomes)
    console.print(_bits_table(recipe, alike))
    if left_out := [outcome.run_dir.name for outcome in outcomes if outcome not in alike]:
        console.print(
            f"not in this table: {', '.join(left_out)}, measured on other held-out text (or from another model) than "
            f"{alike[0].run_dir.name}"
        )
    console.print(_cost_table(outcomes))
    console.print(f"models and metrics: {folder}/<run>")
    if recipe.model.create is not None:
        console.print(
            "A tiny model made minutes ago shows the machine at work; it is no evidence about large ones."
        )


def _measured_alike(recipe: Recipe, outcomes: list[Outcome]) -> list[Outcome]:
    """The runs that began where the recipe's own run did (the first one's, if that is not exported), which come first."""
    own = next((outcome for outcome in outcomes if outcome.run_dir == recipe.run_dir), outcomes[0])

    def began_alike(outcome: Outcome) -> bool:
        shared = own.before.keys() & outcome.before.keys()
        return all(abs(own.before[code] - outcome.before[code]) <= _ROUNDING for code in shared)

    return [own, *(outcome for outcome in outcomes if outcome is not own and began_alike(outcome))]


def _bits_table(recipe: Recipe, outcomes: list[Outcome]) -> Table:
    trained = recipe.trained_languages
    table = Table(
        title="Held-out text of the recipe's own corpus, bits per byte (lower is better)",
        title_justify="left",
    )
    table.add_column("language")
    table.add_column("before", justify="right")
    for outcome in outcomes:
        table.add_column(f"{outcome.run_dir.name}\nafter", justify="right")
        table.add_column("\nchange", justify="right")
    languages = list(dict.fromkeys(code for outcome in outcomes for code in outcome.before))
    others = [code for code in languages if code not in trained]
    for code in [code for code in languages if code in trained]:
        _add_row(table, f"{find_language(code).name} (trained)", [code], outcomes, style="bold")
    for code in others:
        _add_row(table, find_language(code).name, [code], outcomes)
    shared = [code for code in others if all(code in outcome.before for outcome in outcomes)]
    if shared:
        table.add_section()
        _add_row(table, f"mean of {len(shared)} others", shared, outcomes, style="bold")
    return table


def _add_row(table: Table, name: str, codes: list[str], outcomes: list[Outcome], *, style: str = "") -> None:
    cells = [f"{_mean(outcomes[0].before, codes):.4f}" if _measures(outcomes[0], codes) else "–"]
    for outcome in outcomes:
        if _measures(outcome, codes):
            before, after = _mean(outcome.before, codes), _mean(outcome.after, codes)
            cells += [f"{after:.4f}", f"{after - before:+.4f}"]
        else:
            cells += ["–", "–"]
    table.add_row(name, *cells, style=style)


def _measures(outcome: Outcome, codes: list[str]) -> bool:
    return all(code in outcome.before for code in codes)


def _mean(bits: Mapping[str, float], codes: Sequence[str]) -> float:
    return sum(bits[code] for code in codes) / len(codes)


def _cost_table(outcomes: list[Outcome]) -> Table:
    table = Table(title="What was trained", title_justify="left")
    for heading in ("run", "neurons", "weights", "of all", "steps"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for outcome in outcomes:
        trained, total = outcome.facts["trained_parameters"], outcome.facts["parameters"]
        neurons = "–" if outcome.num_neurons is None else f"{outcome.num_neurons:,}"
        share = f"{100 * trained / total:.2f} %"
        table.add_row(outcome.run_dir.name, neurons, f"{trained:,}", share, f"{outcome.step:,}")
    return table
