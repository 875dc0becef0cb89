"""What `lape-ds analyze` made of the runs: pictures and numbers.

After the gains. Each analysis is drawn by the function that draws it for the command, of all runs that have it; its tables are
made in `dynamics_tables.py`, `weight_tables.py` and `language_tables.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lape_ds.analysis.training.results import ANALYSES, analysis_dir
from lape_ds.recipe import NEURON_METHODS
from lape_ds.report.analysis_files import read_analysis_file, stale_note
from lape_ds.report.blocks import Block, Missing, Picture, Prose, Section, Table, command
from lape_ds.report.dynamics_tables import dynamics_data, dynamics_tables
from lape_ds.report.language_tables import (
    activations_data,
    activations_tables,
    alignment_data,
    alignment_tables,
    overlap_data,
    overlap_tables,
)
from lape_ds.report.numbers import Code, joined, line
from lape_ds.report.pictures import inline_picture
from lape_ds.report.runs import Run
from lape_ds.report.sources import Place, Reader
from lape_ds.report.weight_tables import direction_blocks, updates_data, updates_tables

Found = Mapping[Run, Place]  # the analysis's JSON by run


@dataclass(frozen=True)
class _Analysis:
    """How one analysis stands on the page.

    Attributes:
        title: Of the section.
        told: What the picture shows, for who does not see it and below it.
        note: How to read the tables.
        read: A run's result from its JSON.
        draw: `draw(results, path, format=…)`.
        tables: That stand open.
        data: Of the picture, behind a fold.
    """

    title: str
    told: str
    note: str
    read: Callable[[Mapping[str, Any]], Any]
    draw: Callable[..., None]
    tables: Callable[[Found], Sequence[Table]]
    data: Callable[[Found], Sequence[Table]]


_NOTES = {
    "dynamics": "Gradient norms are those before clipping; update norms are those of a step's change of the trained weights, "
    "where the recipe logs them.",
    "updates": "ΔW: what training changed; there: of the weights that changed alone. Effective rank: the exponential of the "
    "entropy of ΔW's singular values; stable rank: its squared norm over that of its largest singular value.",
    "alignment": "Retrieval: how often a sentence's translation is its nearest neighbour, both ways; centred: each language's "
    "mean taken away first. CKA: likeness of the two languages' whole geometry. Cosine above unpaired: without what any two "
    "sentences share.",
    "activations": "Counted on held-out text; ± half of the interval over other text; rise: share of the group's neurons that "
    "are active more often than before.",
    "overlap": "By chance: what two sets of these sizes would share. Jaccard: shared over either.",
}
_TITLES = {
    "dynamics": "Training dynamics",
    "updates": "Weight updates",
    "alignment": "Cross-lingual alignment",
    "activations": "Activation probabilities",
    "overlap": "Overlap with other languages' neurons",
}


def _analysis_named(name: str) -> _Analysis:
    """Imports matplotlib and the analysis."""
    match name:
        case "dynamics":
            from lape_ds.analysis.training.dynamics import Dynamics
            from lape_ds.analysis.training.dynamics_picture import draw_dynamics

            told = (
                "Training loss, change of held-out text, gradient norm and update norm over the tokens seen."
            )
            return _Analysis(
                _TITLES[name],
                told,
                _NOTES[name],
                Dynamics.from_json,
                draw_dynamics,
                dynamics_tables,
                dynamics_data,
            )
        case "updates":
            from lape_ds.analysis.training.updates import Updates
            from lape_ds.analysis.training.updates_picture import draw_updates

            told = "How far and in how many directions each projection of each layer moved."
            return _Analysis(
                _TITLES[name],
                told,
                _NOTES[name],
                Updates.from_json,
                draw_updates,
                updates_tables,
                updates_data,
            )
        case "alignment":
            from lape_ds.analysis.alignment.numbers import Alignment
            from lape_ds.analysis.alignment.picture import draw_alignment

            told = "How near sentences of one meaning are in two languages, layer by layer, before and after training."
            return _Analysis(
                _TITLES[name],
                told,
                _NOTES[name],
                Alignment.from_json,
                draw_alignment,
                alignment_tables,
                alignment_data,
            )
        case "activations":
            from lape_ds.analysis.training.activations import Activations
            from lape_ds.analysis.training.activations_picture import draw_activations

            told = "How often gates are active before and after training: single neurons, languages, layers."
            return _Analysis(
                _TITLES[name],
                told,
                _NOTES[name],
                Activations.from_json,
                draw_activations,
                activations_tables,
                activations_data,
            )
        case "overlap":
            from lape_ds.analysis.training.trained_overlap import TrainedOverlap
            from lape_ds.analysis.training.trained_overlap_picture import draw_trained_overlap

            told = "What share of the trained neurons each language has too, and where in the model they lie."
            return _Analysis(
                _TITLES[name],
                told,
                _NOTES[name],
                TrainedOverlap.from_json,
                draw_trained_overlap,
                overlap_tables,
                overlap_data,
            )
        case _:
            raise AssertionError(name)


def analysis_sections(runs: Sequence[Run], reader: Reader) -> list[Section]:
    """One for each analysis."""
    found = {name: _find(name, runs, reader) for name in ANALYSES}
    sections = [
        Section(name, _TITLES[name], _blocks(name, found[name], reader) if found[name] else [])
        for name in ANALYSES
    ]
    lacking: dict[tuple[str, ...], list[Run]] = {}  # by what they lack
    for run in runs:
        wanted = [name for name in ANALYSES if name != "overlap" or run.method in NEURON_METHODS]
        lacking.setdefault(tuple(name for name in wanted if run not in found[name]), []).append(run)
    missing = [_missing(names, some) for names, some in lacking.items() if names]
    return [*sections, Section("analyses", "Analyses", missing)]


def _find(name: str, runs: Sequence[Run], reader: Reader) -> Found:
    places = {
        run: read_analysis_file(analysis_dir(run.folder) / f"{name}.json", _again(name, run), reader)
        for run in runs
    }
    return {run: place for run, place in places.items() if place is not None}


def _again(name: str, run: Run) -> str:
    return command("lape-ds", "analyze", run.folder, "--only", name)


def _missing(names: Sequence[str], runs: Sequence[Run]) -> Missing:
    what = line(
        ", ".join(_TITLES[name].lower() for name in names).capitalize(),
        ": ",
        joined(Code(run.label) for run in runs),
    )
    only = [] if len(names) == len(ANALYSES) else ["--only", ",".join(names)]
    return Missing(what, command("lape-ds", "analyze", *(run.folder for run in runs), *only))


def _stale_notes(name: str, found: Found, reader: Reader) -> Iterator[Block]:
    for run, place in found.items():
        note = stale_note(run, place["inputs"], _again(name, run), reader)
        if note is not None:
            yield note


def _named(result: Any, label: str) -> Any:
    """A run's result under the name that the page has for the run."""
    return replace(result, subject=replace(result.subject, name=label))


def _blocks(name: str, found: Found, reader: Reader) -> list[Block]:
    analysis = _analysis_named(name)
    results = [_named(analysis.read(place.content), run.label) for run, place in found.items()]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "picture.svg"
        analysis.draw(results, path, format="svg")
        svg = inline_picture(
            path.read_text(encoding="utf-8"),
            name=name,
            title=analysis.title,
            description=f"{analysis.told} The tables beside it have the numbers.",
        )
    joint = direction_blocks(found, reader) if name == "updates" else []
    return [
        *_stale_notes(name, found, reader),
        *analysis.tables(found),
        *joint,
        Picture(svg, analysis.told, analysis.data(found)),
        Prose(analysis.note, is_note=True),
    ]
