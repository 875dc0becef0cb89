"""Gains and forgetting: held-out text of every language before and after training, run by run.

First section of the page, and the sentences and figures above it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lape_ds.languages import find_language
from lape_ds.report.blocks import Block, Cell, Figure, Missing, Prose, Row, Section, Table, Tone, command
from lape_ds.report.numbers import (
    Code,
    Line,
    Number,
    Quoted,
    Strong,
    count,
    duration,
    fixed,
    general,
    how_many,
    line,
    percent,
    signed,
)
from lape_ds.report.runs import Run
from lape_ds.report.setup import DASH, training_seconds

_COLUMNS = 6  # runs that stand side by side, language by language; of more each has a row


def tone(change: Number, *, higher_is_better: bool = False) -> Tone:
    """Whether a change is good news."""
    if not change.value:
        return ""
    return "better" if (change.value > 0) == higher_is_better else "worse"


def figures(run: Run) -> list[Figure]:
    """The numbers at the top of a page of one run."""
    found = []
    own, others = run.change(run.trained), run.change(run.others)
    if own is not None:
        found.append(
            Figure(
                f"{run.target_name}, held out", signed(own), "bits per byte; below zero is better", tone(own)
            )
        )
    if others is not None:
        detail = line("bits per byte, mean of ", count(num_others(run)), "; above zero is forgotten")
        found.append(Figure("the other languages", signed(others), detail, tone(others)))
    trained, of_all = Number.at(run.facts["trained_parameters"]), Number.at(run.facts["parameters"])
    found.append(
        Figure("weights trained", percent(trained / of_all), line(count(trained), " of ", count(of_all)))
    )
    seconds = training_seconds(run)
    if seconds is not None and run.last_step is not None:
        found.append(Figure("training", duration(seconds), line(count(Number.at(run.last_step)), " steps")))
    return found


def sentences(run: Run) -> Iterator[Line]:
    """What one run gained and forgot, in words."""
    if run.diverged is not None:
        yield line("The training diverged: ", Quoted(run.diverged), ".")
    elif not run.is_finished and run.last_step is not None:
        steps = [count(Number.at(place)) for place in (run.last_step, run.facts["total_steps"])]
        yield line("This training is not finished: ", steps[0], " of ", steps[1], " steps are done.")
    ends = run.bits(run.trained)
    if ends is None:
        yield line("Nothing was measured before and after this training: it cannot be said what it gained.")
        return
    before, after = ends
    change = after - before
    verb = "fell" if change.value < 0 else "rose"
    yield line(
        f"Held-out {run.target_name} {verb} from ", fixed(before), " to ", Strong(fixed(after)), " bits per byte (",
        Strong(signed(change)), ", ", percent(change / before, 1), ").",
    )  # fmt: skip
    ends = run.bits(run.others)
    if ends is not None:
        change = ends[1] - ends[0]
        verb = "rose" if change.value > 0 else "fell"
        yield line(
            "The mean of ", count(num_others(run)), f" other languages {verb} from ", fixed(ends[0]), " to ",
            Strong(fixed(ends[1])), " (", Strong(signed(change)), ", ", percent(change / ends[0], 1), "). ",
            *_each(run),
        )  # fmt: skip


def num_others(run: Run) -> Number:
    """How many languages were measured and not trained."""
    assert run.before is not None
    num_trained = len(run.before.bits) - len(run.others)
    return how_many(run.before.bits.every()) - Number(num_trained, str(num_trained))


def _each(run: Run) -> Iterator[Any]:
    """Which language lost most."""
    changes = {code: run.change([code]) for code in run.others}
    known = {code: change for code, change in changes.items() if change is not None}
    worst = max(known, key=lambda code: known[code].value)
    if len(known) > 1 and known[worst].value > 0:
        yield from (f"Most was forgotten of {find_language(worst).name}: ", signed(known[worst]), ".")


def comparing_sentences(runs: Sequence[Run]) -> Iterator[Line]:
    """Of several runs: which gained and which forgot most."""
    known = [(run, change) for run in runs if (change := run.change(run.trained)) is not None]
    if not known:
        yield line("None of these runs has measured held-out text before and after its training.")
        return
    run, change = min(known, key=lambda pair: pair[1].value)
    yield line(
        "The largest gain: ",
        Strong(Code(run.label)),
        f", {run.target_name} ",
        Strong(signed(change)),
        " bits per byte.",
    )
    losses = [(run, run.change(run.others)) for run, _ in known]
    measured = [(run, loss) for run, loss in losses if loss is not None]
    if measured:
        run, loss = min(measured, key=lambda pair: pair[1].value)
        yield line(
            "The least forgotten: ", Strong(Code(run.label)), ", mean of its other languages ", Strong(signed(loss)), "."
        )  # fmt: skip
    if len({run.method for run in runs}) > 1 and measured:
        yield line(
            "Each run stands here at its own learning rate, which ranks methods arbitrarily: only the frontiers of a sweep "
            "compare them."
        )


def gains_section(runs: Sequence[Run]) -> Section:
    """Held-out text before and after; several runs also in one line each."""
    blocks: list[Block] = []
    measured = [run for run in runs if run.bits(run.trained) is not None]
    if len(runs) > 1:
        blocks.append(overview(runs))
    if len(measured) == 1:
        blocks.append(_table_of_one(measured[0]))
    elif measured:
        start = 0
        while start < len(measured):
            blocks.append(
                _table_of_many(measured[start : start + _COLUMNS], is_folded=len(measured) > _COLUMNS)
            )
            start += _COLUMNS
    if measured:
        blocks.append(
            Prose(
                "Bits per byte of text that no run trained on, the same before and after; lower is better. Bold: trained. The "
                "weights measured after training are those that were exported, or the last ones.",
                is_note=True,
            )
        )
    blocks += [
        Missing(
            line("Held-out text of ", Code(run.label), " before and after training"),
            command(
                "lape-ds", "train", run.folder, "train.run_name=measured", "train.heldout.every_steps=100"
            ),
        )
        for run in runs
        if run not in measured and run.is_finished and run.diverged is None
    ]
    return Section("gains", "Gains and forgetting", blocks)


def overview(runs: Sequence[Run]) -> Table:
    """A line for each run."""
    rows = []
    for run in runs:
        own, others = run.change(run.trained), run.change(run.others)
        trained, of_all = Number.at(run.facts["trained_parameters"]), Number.at(run.facts["parameters"])
        seconds = training_seconds(run)
        rows.append(
            Row(
                Code(run.label),
                [
                    Quoted(run.recipe["train"]["method"]),
                    run.target_name,
                    percent(trained / of_all),
                    general(Number.at(run.recipe["train"]["optimizer"]["learning_rate"])),
                    DASH if run.last_step is None else count(Number.at(run.last_step)),
                    DASH if own is None else Cell(signed(own), tone(own)),
                    DASH if others is None else Cell(signed(others), tone(others)),
                    DASH if seconds is None else duration(seconds),
                ],
            )
        )
    headings = [
        "run",
        "method",
        "language",
        "weights",
        "learning rate",
        "steps",
        "its language",
        "mean of others",
        "time",
    ]
    return Table(
        "All runs: what each changed, in bits per byte of held-out text (below zero is better)",
        headings,
        rows,
        words=(0, 1),
    )


def _table_of_one(run: Run) -> Table:
    assert run.before is not None
    codes = [*(code for code in run.trained if code in run.before.bits), *_by_change(run)]
    changes = {code: run.change([code]) for code in codes}
    widest = max((abs(change.value) for change in changes.values() if change is not None), default=0.0)
    rows = [
        _row(run, [code], find_language(code).name, widest, is_main=code in run.trained) for code in codes
    ]
    if len(run.others) > 1:
        rows.append(
            _row(
                run,
                run.others,
                line("mean of the ", count(num_others(run)), " others"),
                widest,
                is_total=True,
            )
        )
    return Table("Held-out text by language, bits per byte", ["language", "before", "after", "change"], rows)


def _by_change(run: Run) -> list[str]:
    """The other languages, what was forgotten most first."""
    changes = {code: run.change([code]) for code in run.others}
    return sorted(changes, key=lambda code: -change.value if (change := changes[code]) is not None else 0.0)


def _row(
    run: Run,
    codes: Sequence[str],
    heading: Any,
    widest: float,
    *,
    is_main: bool = False,
    is_total: bool = False,
) -> Row:
    ends = run.bits(codes)
    if ends is None:
        return Row(heading, [DASH] * 3, is_total, is_main)
    change = ends[1] - ends[0]
    bar = change.value / widest if widest else None
    return Row(
        heading,
        [fixed(ends[0], 4), fixed(ends[1], 4), Cell(signed(change, 4), tone(change), bar)],
        is_total,
        is_main,
    )


def _table_of_many(runs: Sequence[Run], *, is_folded: bool) -> Table:
    trained = list(dict.fromkeys(code for run in runs for code in run.trained))
    codes = list(dict.fromkeys([*trained, *(code for run in runs for code in run.others)]))
    rows = []
    for code in codes:
        changes = [run.change([code]) for run in runs]
        cells = [
            DASH
            if change is None
            else Cell(Strong(signed(change)) if code in run.trained else signed(change), tone(change))
            for run, change in zip(runs, changes, strict=True)
        ]
        rows.append(Row(find_language(code).name, cells, is_main=code in trained))
    means = [run.change(run.others) for run in runs]
    cells = [DASH if change is None else Cell(signed(change), tone(change)) for change in means]
    rows.append(Row("mean of the others", cells, is_total=True))
    caption = "Change of held-out text by language, bits per byte"
    return Table(caption, ["language", *(Code(run.label) for run in runs)], rows, is_folded=is_folded)
