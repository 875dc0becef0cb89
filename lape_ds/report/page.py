"""The page: all sections of what the user named, in one file that needs nothing else.

Last on the data's way. Nothing is computed here but where sections stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lape_ds import __version__
from lape_ds.report.analyses import analysis_sections
from lape_ds.report.blocks import Figure, Missing, Section
from lape_ds.report.evaluations import comparison_sentences, evaluation_section, read_comparison
from lape_ds.report.gains import comparing_sentences, figures, gains_section, sentences
from lape_ds.report.matrix import matrix_sections, matrix_sentences, read_matrix
from lape_ds.report.neurons import ablation_section, stability_section
from lape_ds.report.numbers import Code, joined, line
from lape_ds.report.runs import Run, read_runs
from lape_ds.report.setup import cost_section, setup_section
from lape_ds.report.sources import Reader
from lape_ds.report.subjects import Subjects
from lape_ds.report.sweep import sweep_section, sweep_sentences
from lape_ds.writing import told_if_unwritable, write_text


@dataclass(frozen=True)
class Page:
    """What the template writes.

    Attributes:
        title: Of the page.
        subtitle: A line below it.
        summary: Sentences.
        figures: The few numbers at the top; none where several runs are compared.
        sections: Those with something in them.
        missing: Of all sections: what is not there, with the command that makes it.
        files: What was read, relative to the page, percent-encoded.
        version: Of lape-ds.
    """

    title: str
    subtitle: Any
    summary: Sequence[Any]
    figures: Sequence[Figure]
    sections: Sequence[Section]
    missing: Sequence[Missing]
    files: Sequence[str]
    version: str = __version__


def write_report(subjects: Subjects, output: Path | None = None) -> Path:
    """Writes the page.

    Args:
        subjects: What it tells of.
        output: The file; `report.html` in the folder of what was named if None.

    Returns:
        The file.

    Raises:
        UserError: A folder named is no run's, a file that is read is damaged, or the page cannot be written.
    """
    path = output or subjects.folder / "report.html"
    page = make_page(subjects, path.parent)
    with told_if_unwritable(str(path), kept="the runs"):
        write_text(path, render(page))
    return path


def make_page(subjects: Subjects, folder: Path) -> Page:
    """The page's content.

    Args:
        subjects: What it tells of.
        folder: Where the page will lie: sources are relative to it.
    """
    reader = Reader(folder)
    in_recipes = [path for recipe in subjects.recipes for path in recipe.run_folders()]
    runs = read_runs([*subjects.runs, *in_recipes], reader)
    sections = list(_sections(subjects, runs, reader))
    missing = [block for section in sections for block in section.blocks if isinstance(block, Missing)]
    return Page(
        title=_title(subjects, runs),
        subtitle=_subtitle(runs),
        summary=list(_summary(subjects, runs, reader)),
        figures=figures(runs[0]) if len(runs) == 1 else [],
        sections=[section for section in sections if not section.is_empty],
        missing=missing,
        files=list(reader.read),
    )


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=PackageLoader("lape_ds.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(page=page)


def _title(subjects: Subjects, runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        return f"{runs[0].output_dir.name} / {runs[0].label}"
    named = [one.folder.resolve().name for one in (*subjects.matrices, *subjects.recipes)]
    return ", ".join(named) if named else f"{subjects.folder.name}: runs compared"


def _subtitle(runs: Sequence[Run]) -> Any:
    if not runs:
        return ""
    languages = list(dict.fromkeys(run.target_name for run in runs))
    methods = list(dict.fromkeys(run.method for run in runs))
    return line(joined(languages[:3]), " · ", joined([Code(method) for method in methods]))


def _summary(subjects: Subjects, runs: Sequence[Run], reader: Reader) -> Iterator[Any]:
    for matrix in subjects.matrices:
        found = read_matrix(matrix.folder, reader)
        if found is not None:
            yield from matrix_sentences(found)
    if len(runs) == 1:
        yield from sentences(runs[0])
    elif runs:
        yield from comparing_sentences(runs)
    for recipe in subjects.recipes:
        yield from sweep_sentences(recipe.folder, reader)
    for folder in _recipe_folders(runs):
        compared = read_comparison(folder, [run for run in runs if run.output_dir == folder], reader)
        if compared is not None:
            yield from comparison_sentences(*compared)


def _sections(subjects: Subjects, runs: Sequence[Run], reader: Reader) -> Iterator[Section]:
    if runs:
        yield gains_section(runs)
    folders = _recipe_folders(runs)
    for number, folder in enumerate(folders):
        own = [run for run in runs if run.output_dir == folder]
        yield evaluation_section(folder, own, reader, name=_numbered("evaluation", number))
    for number, matrix in enumerate(subjects.matrices):
        yield from matrix_sections(matrix.folder, matrix.name, reader, name=_numbered("matrix", number))
    for number, recipe in enumerate(subjects.recipes):
        yield sweep_section(recipe.folder, recipe.name, reader, name=_numbered("sweep", number))
    if runs:
        yield from analysis_sections(runs, reader)
        yield from _neuron_sections(subjects, runs, reader)
        yield setup_section(runs)
        yield cost_section(runs)


def _neuron_sections(subjects: Subjects, runs: Sequence[Run], reader: Reader) -> Iterator[Section]:
    names = {recipe.folder.resolve(): recipe.name for recipe in subjects.recipes}
    for number, folder in enumerate(_recipe_folders(runs)):
        own = [run for run in runs if run.output_dir == folder]
        recipe = names.get(folder, own[0].folder)
        yield stability_section(own, recipe, reader, name=_numbered("stability", number))
        yield ablation_section(own, recipe, reader, name=_numbered("ablation", number))


def _recipe_folders(runs: Sequence[Run]) -> list[Path]:
    return list(dict.fromkeys(run.output_dir for run in runs))


def _numbered(name: str, number: int) -> str:
    return name if number == 0 else f"{name}-{number + 1}"
