"""What `lape-ds eval` measured and `lape-ds compare` found.

Beside the gains. A comparison with intervals is shown where its JSON is there (`eval/comparison.json`); scores alone otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lape_ds.languages import find_language
from lape_ds.report.blocks import TONES, Block, Cell, Missing, Prose, Row, Section, Table, command
from lape_ds.report.gains import tone
from lape_ds.report.numbers import (
    Code,
    Line,
    Number,
    Quoted,
    Strong,
    count,
    fixed,
    how_many,
    line,
    number_at,
    percent,
    probability,
    signed,
)
from lape_ds.report.runs import Run
from lape_ds.report.setup import DASH
from lape_ds.report.sources import Place, Reader

_ARROWS = {"higher": "↑", "lower": "↓"}
_OPEN_ROWS = 24  # a longer table of tasks is folded


def comparison_file(output_dir: Path) -> Path:
    """Where the page looks for a recipe's comparison."""
    return output_dir / "eval" / "comparison.json"


def read_comparison(
    output_dir: Path, runs: Sequence[Run], reader: Reader
) -> tuple[Place, dict[Run, str]] | None:
    """A recipe's comparison and the labels under which it has the runs; None where it has none of them."""
    found = reader.json(comparison_file(output_dir))
    if found is None:
        return None
    base = found["base"].content
    names = {
        Path(model["folder"].content).name: label for label, model in found["models"].items() if label != base
    }
    labels = {run: names[run.folder.name] for run in runs if run.folder.name in names}
    return (found, labels) if labels else None


def comparison_sentences(comparison: Place, labels: Mapping[Run, str]) -> Iterator[Line]:
    """How many tasks each run does better and worse."""
    for run, label in labels.items():
        verdicts = comparison["tasks"].every("models", label, "verdict")
        yield line(
            *(() if len(labels) == 1 else (Code(run.label), ": ")),
            "Tasks measured on the same documents as the base: ", count(how_many(verdicts)), "; better: ",
            Strong(count(how_many(verdicts, "better"))), ", worse: ", Strong(count(how_many(verdicts, "worse"))),
            " (after Holm's correction).",
        )  # fmt: skip


def evaluation_section(
    output_dir: Path, runs: Sequence[Run], reader: Reader, *, name: str = "evaluation"
) -> Section:
    """Tasks by run."""
    found = read_comparison(output_dir, runs, reader)
    blocks: list[Block] = []
    if found is not None:
        blocks += _compared(*found)
    else:
        blocks += _scores(output_dir, runs, reader)
    missing = [run for run in runs if found is not None and run not in found[1]]
    for run in runs if found is None and not blocks else missing:
        blocks.append(Missing(line("Tasks of ", Code(run.label)), command("lape-ds", "eval", run.folder)))
    if found is None:
        comparing = command("lape-ds", "compare", output_dir / "eval", "--json", comparison_file(output_dir))
        blocks.append(Missing("Which differences from the base are more than chance", comparing))
    return Section(name, "Evaluation", blocks)


def _compared(comparison: Place, labels: Mapping[Run, str]) -> list[Block]:
    method = comparison["method"]
    means = [*comparison["means"]]
    tasks = [*comparison["tasks"]]
    base = comparison["base"].content
    blocks: list[Block] = []
    if means:
        blocks.append(
            _comparison_table("Means over tasks, against the base", means, labels, base, is_folded=False)
        )
    blocks.append(
        _comparison_table(
            "Every task, against the base",
            tasks,
            labels,
            base,
            is_folded=bool(means) or len(tasks) > _OPEN_ROWS,
        )
    )
    note = line(
        "Differences on the same documents; ± half of the ", percent(Number.at(method["level"]), 0), " interval (",
        Quoted(method["interval"]), ", ", count(Number.at(method["num_resamples"])), " resamples). p: ", Quoted(method["p"]),
        "; after Holm's correction. No difference shown is no proof that there is none. Mean accuracy: ",
        Quoted(method["mean_accuracy"]), ".",
    )  # fmt: skip
    blocks.append(Prose(note, is_note=True))
    return blocks


def _comparison_table(
    caption: str, rows: Sequence[Place], labels: Mapping[Run, str], base: str, *, is_folded: bool
) -> Table:
    headings: list[Any] = ["task", "language", "measure", "documents", base]
    for run in labels:
        name: list[Any] = [] if len(labels) == 1 else [Code(run.label), " "]
        headings += [line(*name, "difference"), line(*name, "p"), line(*name, "verdict")]
    words = [0, 1, *(6 + 3 * number for number in range(len(labels)))]
    return Table(
        caption, headings, [_comparison_row(row, labels) for row in rows], words=words, is_folded=is_folded
    )


def _comparison_row(row: Place, labels: Mapping[Run, str]) -> Row:
    digits = _digits(row["metric"].content)
    language = row.get("language")
    cells: list[Any] = [
        _scope(row) if language is None else find_language(language.content).name,
        line(Quoted(row["metric"]), f" {_ARROWS[row['direction'].content]}"),
        count(Number.at(row["num_documents"])),
        fixed(Number.at(row["base_score"]), digits),
    ]
    for label in labels.values():
        found = row["models"][label]
        difference, half = Number.at(found["difference"]), number_at(found.get("half_width"))
        parts = [signed(difference, digits), *([] if half is None else [" ±", fixed(half, digits)])]
        verdict = found["verdict"].content
        p = number_at(found.get("p_holm"))
        cells += [
            Cell(line(*parts), tone(difference, higher_is_better=row["direction"].content == "higher")),
            DASH if p is None else probability(p),
            Cell(Quoted(found["verdict"]), TONES.get(verdict, ""), is_word=True),
        ]
    return Row(Quoted(row["title"]), cells)


def _scope(row: Place) -> str:
    """Over which languages a mean is: the last word of its name."""
    return row["name"].content.rpartition(", ")[2] or "all"


def _digits(metric: str) -> int:
    return 2 if metric.startswith("chrf") or metric.endswith(("bleu", "ter")) else 4


def _scores(output_dir: Path, runs: Sequence[Run], reader: Reader) -> list[Block]:
    """Base and runs task by task, without intervals of the difference."""
    folder = output_dir / "eval"
    measured = [run for run in runs if (folder / run.folder.name / "samples").is_dir()]
    if not measured or not (folder / "base").is_dir():
        return []
    rows = []
    for path in sorted((folder / "base").glob("*.json")):
        base = reader.json(path)
        assert base is not None
        others = [reader.json(folder / run.folder.name / path.name) for run in measured]
        metric = base["metric"].content
        cells: list[Any] = [
            find_language(base["language"].content).name,
            line(Quoted(base["metric"]), f" {_ARROWS[base['direction'].content]}"),
            count(Number.at(base["num_documents"])),
            *(DASH if one is None else _score(one, metric) for one in [base, *others]),
        ]
        rows.append(Row(Quoted(base["title"]), cells))
    headings = ["task", "language", "measure", "documents", "base", *(Code(run.label) for run in measured)]
    caption = "Scores; ± standard error over documents where there is one"
    return [Table(caption, headings, rows, words=(0, 1), is_folded=len(rows) > _OPEN_ROWS)]


def _score(result: Place, metric: str) -> Line:
    digits = _digits(metric)
    error = number_at(result.get("scores", metric, "stderr"))
    value = fixed(Number.at(result["scores"][metric]["value"]), digits)
    return line(value, *([] if error is None else [" ±", fixed(error, digits)]))
