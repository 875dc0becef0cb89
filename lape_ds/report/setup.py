"""What was run and what it cost: the settings, the code, the machine, the time.

Beside the gains; runs stand side by side, and what is the same in all of them is said once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lape_ds.languages import find_language
from lape_ds.report.blocks import Block, Cell, Missing, Prose, Row, Section, Table, command
from lape_ds.report.numbers import (
    Code,
    Number,
    Quoted,
    count,
    duration,
    general,
    joined,
    line,
    middle,
    number_at,
    percent,
    short,
    total,
)
from lape_ds.report.runs import Run

DASH = "–"
Fact = Callable[[Run], Any]  # what stands in a run's cell; None where the run says nothing of it


def setup_section(runs: Sequence[Run]) -> Section:
    """Model, data, settings, versions, machine."""
    blocks: list[Block] = [
        facts_table("Settings", runs, _WHAT),
        facts_table("Machine and code", runs, _ON_WHAT),
    ]
    return Section("setup", "What was run", blocks)


def cost_section(runs: Sequence[Run]) -> Section:
    """Time and speed."""
    blocks: list[Block] = [facts_table("Cost of training", runs, _COST)]
    blocks.append(
        Prose(
            "Time is that of the optimizer steps that count, without loading and what an interruption repeated; tokens a second "
            "is the median over steps, of all ranks together.",
            is_note=True,
        )
    )
    blocks += [
        Missing(line("Steps of ", Code(run.label)), command("lape-ds", "train", run.folder))
        for run in runs
        if not run.is_finished
    ]
    return Section("cost", "Cost", blocks)


def facts_table(caption: str, runs: Sequence[Run], facts: dict[str, Fact]) -> Table:
    """A row for each fact that any run has, a column for each run; one cell where all say the same."""
    rows = []
    for name, fact in facts.items():
        found = [fact(run) for run in runs]
        if all(one is None for one in found):
            continue
        shown = [DASH if one is None else one for one in found]
        if len(runs) > 1 and len({_said(one) for one in shown}) == 1:
            rows.append(Row(name, [Cell(shown[0], span=len(runs), is_word=True)]))
        else:
            rows.append(Row(name, [Cell(one, is_word=True) for one in shown]))
    headings = ["", "value"] if len(runs) == 1 else ["", *(Code(run.label) for run in runs)]
    return Table(caption, headings, rows, words=range(len(runs)))


def _said(content: Any) -> Any:
    """What a reader sees of a cell, wherever it was read."""
    if hasattr(content, "number"):
        return content.text, content.unit
    if hasattr(content, "parts"):
        return tuple(_said(part) for part in content.parts)
    return content.place.content if hasattr(content, "place") else content


def training_seconds(run: Run) -> Number | None:
    """Of all optimizer steps; None before the first."""
    return None if run.lines is None or run.last_step is None else total(run.lines.every("seconds"))


def _quoted(*keys: str) -> Fact:
    def fact(run: Run) -> Any:
        place = run.facts.get(*keys)
        return None if place is None or place.content == "" else Quoted(place)

    return fact


def _counted(*keys: str) -> Fact:
    def fact(run: Run) -> Any:
        number = number_at(run.facts.get(*keys))
        return None if number is None else count(number)

    return fact


def _setting(*keys: str) -> Fact:
    def fact(run: Run) -> Any:
        number = number_at(run.facts.get(*keys))
        return None if number is None else general(number)

    return fact


def _languages(run: Run) -> Any:
    return joined([*(find_language(code).name for code in run.trained)])


def _weights(run: Run) -> Any:
    trained, of_all = Number.at(run.facts["trained_parameters"]), Number.at(run.facts["parameters"])
    return line(count(trained), " of ", count(of_all), " (", percent(trained / of_all), ")")


def _neurons(run: Run) -> Any:
    number = None if run.exported is None else number_at(run.exported.get("num_neurons"))
    return None if number is None else count(number)


def _source(run: Run) -> Any:
    source = run.recipe["corpus"]["source"]
    named = next((source.get(key) for key in ("dataset", "path") if source.get(key) is not None), None)
    kind = {"cldr": "Unicode CLDR records, by babel", "hub": "from the hub, ", "files": "local files, "}[
        source["kind"].content
    ]
    return line(kind, *([] if named is None else [Quoted(named)]))


def _batch(run: Run) -> Any:
    train = run.recipe["train"]
    parts = [Number.at(train["micro_batch_size"]), Number.at(train["gradient_accumulation_steps"])]
    return line(
        count(parts[0]), " blocks × ", count(parts[1]), " accumulated × ", count(Number.at(run.facts["world_size"])),
        " ranks, of ", count(Number.at(train["block_length"])), " tokens",
    )  # fmt: skip


def _steps(run: Run) -> Any:
    planned = count(Number.at(run.facts["total_steps"]))
    if run.last_step is None or run.is_finished:
        return planned
    return line(count(Number.at(run.last_step)), " of ", planned)


def _tokens(run: Run) -> Any:
    return None if run.last_step is None or run.lines is None else count(total(run.lines.every("tokens")))


def _replay(run: Run) -> Any:
    share = Number.at(run.recipe["train"]["replay"]["share"])
    return percent(share, 0) if share.value else None


def _after(run: Run) -> Any:
    if run.after is None:
        return None
    words = "exported, step " if run.exported is not None else "last measured, step "
    return line(words, count(Number.at(run.after.step)))


def _machine(run: Run) -> Any:
    hardware = run.facts["hardware"]
    if not hardware["gpus"].content:
        return line(Quoted(hardware["cpu"]), ", ", count(Number.at(hardware["cpus"])), " cores")
    return joined([Quoted(gpu) for gpu in hardware["gpus"]])


def _versions(run: Run) -> Any:
    known = [
        (name, version) for name, version in run.facts["versions"].items() if version.content is not None
    ]
    return joined([line(name, " ", Quoted(version)) for name, version in known])


def _speed(run: Run) -> Any:
    if run.lines is None or run.last_step is None:
        return None
    return short(middle(run.lines.every("tokens_per_second")), "tokens/s")


def _time(run: Run) -> Any:
    seconds = training_seconds(run)
    return None if seconds is None else duration(seconds)


def _measuring(run: Run) -> Any:
    places = None if run.lines is None else run.lines.every("heldout_seconds")
    return duration(total(places)) if places is not None and places.contents else None


def _diverged(run: Run) -> Any:
    return None if run.diverged is None else Quoted(run.diverged)


_WHAT: dict[str, Fact] = {
    "model": _quoted("recipe", "model", "path"),
    "trained language": _languages,
    "method": _quoted("recipe", "train", "method"),
    "weights trained": _weights,
    "neurons": _neurons,
    "text": _source,
    "learning rate": _setting("recipe", "train", "optimizer", "learning_rate"),
    "schedule": _quoted("recipe", "train", "schedule", "name"),
    "weight decay": _setting("recipe", "train", "optimizer", "weight_decay"),
    "batch": _batch,
    "steps": _steps,
    "tokens trained on": _tokens,
    "replay of other languages": _replay,
    "weights told of here": _after,
    "ended early": _diverged,
    "seed": _setting("seeds", "seed"),
}
_ON_WHAT: dict[str, Fact] = {
    "machine": _machine,
    "ranks": _counted("world_size"),
    "ZeRO stage": _setting("recipe", "deepspeed", "zero_stage"),
    "precision": _quoted("recipe", "model", "dtype"),
    "date": _quoted("date"),
    "commit": _quoted("commit"),
    "base model's fingerprint": _quoted("model_fingerprint"),
    "versions": _versions,
}
_COST: dict[str, Fact] = {
    "steps": _steps,
    "time of the steps": _time,
    "time of measuring held-out text": _measuring,
    "speed": _speed,
    "ranks": _counted("world_size"),
    "machine": _machine,
}
