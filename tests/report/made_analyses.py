"""Results of analyses that nobody made, with values of the right kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lape_ds.analysis.alignment.numbers import MEASURES, Alignment, BeforeAfter, PairAlignment
from lape_ds.analysis.training.activations import EDGES, Activations, GroupChange, Points
from lape_ds.analysis.training.dynamics import read_dynamics
from lape_ds.analysis.training.inputs import Input, file_input
from lape_ds.analysis.training.results import Subject, write_analysis, write_files
from lape_ds.analysis.training.run import AnalyzedRun
from lape_ds.analysis.training.trained_overlap import LanguageShare, TrainedOverlap
from lape_ds.analysis.training.updates import Directions, PartDirections, PartUpdate, Updates
from lape_ds.recipe import Recipe

LAYERS = 3
BASE = Input("/models/base", None, "ab" * 32)
RNG = np.random.default_rng(7)


def write_analyses(folder: Path, recipe: Recipe, *, pack_step: int | None = None) -> None:
    """All five of a run, but for the pictures; of its pack of a step, else of its export, as if there had been one."""
    run = AnalyzedRun(folder, folder.name, recipe, {})
    dynamics = read_dynamics(run)
    model = _model_input(run, dynamics.step[-1], pack_step)
    (folder / "neurons.safetensors").write_text("some neurons")
    neurons = run.neuron_set(folder / "neurons.safetensors")
    results = {
        "dynamics": dynamics,
        "updates": _updates(run.subject(BASE, model)),
        "alignment": _alignment(run.subject(BASE, model)),
        "activations": _activations(run.subject(BASE, model, neurons)),
        "overlap": _overlap(run.subject(neurons)),
    }
    for name, result in results.items():
        write_analysis(folder / "analysis", name, [result], lambda path, _: path.touch())


def _model_input(run: AnalyzedRun, step: int, pack_step: int | None) -> Input:
    if pack_step is not None:
        return file_input(run.run_dir / "pack.safetensors", run.run_dir, step=pack_step)
    return run.trained if (run.run_dir / "model").exists() else Input("model", step, "no longer there")


def write_directions(folder: Path, names: list[str], step: int) -> None:
    """Between two runs of a step, as their joint analysis has them."""
    dots = ((2.0, 0.7), (0.7, 3.0))
    models = [Input("model", step, None) for _ in names]
    found = Directions(tuple(names), (BASE, *models), (PartDirections("up_proj", 0, dots),))
    write_files(folder, "directions", found.as_json(), found.rows(), lambda path, _: path.touch())


def _updates(subject: Subject) -> Updates:
    def part(name: str, layer: int) -> PartUpdate:
        change, there = RNG.uniform(0.1, 1.0, 2).tolist()
        effective, stable = RNG.uniform(3.0, 9.0, 2).tolist()
        return PartUpdate(name, layer, 6144, 600, 20.0, change, there, 0.03, effective, stable, 32)

    names = ("gate_proj", "up_proj", "down_proj")
    parts = [part(name, layer) for layer in range(LAYERS) for name in names]
    still = PartUpdate("embeddings", None, 9000, 0, 30.0, 0.0, 0.0, 0.0, None, None, 32)
    return Updates(subject, "bfloat16", (*parts, still))


def _alignment(subject: Subject) -> Alignment:
    def pair() -> dict[str, BeforeAfter]:
        return {name: _before_after() for name in MEASURES}

    pairs = [PairAlignment("mlt_Latn", other, pair()) for other in ("eng_Latn", "kat_Geor", "cym_Latn")]
    return Alignment(
        subject, "CLDR records", 300, {"mlt_Latn": 2}, {}, tuple(pairs), {"english": pair(), "others": pair()}
    )  # fmt: skip


def _before_after() -> BeforeAfter:
    before, after, chance_before, chance_after = (tuple(row) for row in RNG.random((4, LAYERS + 1)).tolist())
    mean_before, mean_after = RNG.random(2).tolist()
    half_width = (None, 0.1, 0.2, 0.3)
    return BeforeAfter(before, after, chance_before, chance_after, half_width, mean_before, mean_after, 0.021)


def _activations(subject: Subject) -> Activations:
    def change(*, layers: tuple[float | None, ...]) -> GroupChange:
        before, after = RNG.random(2).tolist()
        return GroupChange(before, after, 0.01, 0.7, 0.3, 0.05, layers, tuple(range(len(EDGES) - 1)))

    groups, codes = ("trained", "random", "all"), ("mlt_Latn", "eng_Latn")
    points = Points((0, 2), (5, 7), (0.25, 0.5), (0.375, 0.625))
    return Activations(
        subject,
        num_tokens={"mlt_Latn": 3000, "eng_Latn": 2987},
        left_out={},
        num_neurons={"trained": 1234, "random": 1234, "all": 458_752},
        changes={group: {code: change(layers=(0.1, None, -0.2)) for code in codes} for group in groups},
        points={group: dict.fromkeys(codes, points) for group in groups[:2]},
    )


def _overlap(subject: Subject) -> TrainedOverlap:
    shares = (
        LanguageShare("mlt_Latn", "Semitic", 1234, 1234, 1.0, 1.0, 3.3),
        LanguageShare("eng_Latn", "Germanic", 901, 55, 55 / 1234, 55 / 2080, 2.4),
    )
    return TrainedOverlap(subject, 1234, 458_752, (200, 34, 1000), 1179, shares)
