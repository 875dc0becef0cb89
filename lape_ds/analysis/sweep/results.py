"""From the run folders of a sweep to one frontier per variant.

Between the runs and the report. Unfinished and diverged runs are results too: they are told, never filled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from lape_ds.analysis.sweep.frontier import MethodFrontier, Point, RatePoint
from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.recipe import Recipe, SweepRun, sweep_runs
from lape_ds.training.run_folder import Finished, read_finished

_SAME_TEXT = 1e-3  # bits per byte by which the base model may differ from itself in another run, at most


@dataclass(frozen=True)
class SweepResults:
    """What a sweep has measured so far.

    Attributes:
        methods: One per variant with a finished or diverged run, in the recipe's order.
        targets: Codes of the trained languages.
        others: Codes of all others that were measured.
        trained_parameters: By variant.
        parameters: Of the model.
        model_fingerprint: Of the base.
        num_runs: Planned.
        notes: What a reader must know of the runs, a sentence each.
    """

    methods: tuple[MethodFrontier, ...]
    targets: tuple[str, ...]
    others: tuple[str, ...]
    trained_parameters: dict[str, int]
    parameters: int
    model_fingerprint: str
    num_runs: int
    notes: tuple[str, ...]

    @property
    def target_names(self) -> str:
        """The trained languages in English."""
        return ", ".join(find_language(code).name for code in self.targets)


def read_sweep(recipe: Recipe) -> SweepResults:
    """Reads every run of a recipe's sweep.

    Raises:
        UserError: None is finished, or they are not of one base model.
    """
    runs = sweep_runs(recipe)
    folder = runs[0].run_dir.parents[2]
    ends = [(run, read_finished(run.run_dir)) for run in runs]
    finished = [(run, found) for run, found in ends if found is not None]
    if not finished:
        raise UserError(f"no run of this sweep is finished under {folder}; run `lape-ds sweep` first")
    fingerprints = {found.facts["model_fingerprint"] for _, found in finished}
    if len(fingerprints) > 1:
        raise UserError(
            f"the runs under {folder} began with {len(fingerprints)} different base models; delete those of the old one and "
            "sweep again"
        )
    targets = runs[0].recipe.trained_languages
    others = [code for code in runs[0].recipe.train.heldout.languages if code not in targets]
    if not others:
        raise UserError("train.heldout.languages names only what is trained: nothing tells what is forgotten")
    methods = [
        _method(name, [end for end in ends if end[0].variant == name], targets, others)
        for name in dict.fromkeys(run.variant for run, _ in finished)
    ]
    return SweepResults(
        methods=tuple(methods),
        targets=tuple(targets),
        others=tuple(others),
        trained_parameters={run.variant: found.facts["trained_parameters"] for run, found in finished},
        # Some methods count weights of their own beside the model's.
        parameters=min(found.facts["parameters"] for _, found in finished),
        model_fingerprint=fingerprints.pop(),
        num_runs=len(runs),
        notes=tuple(_notes(len(runs), finished)),
    )


def _method(
    name: str,
    ends: Sequence[tuple[SweepRun, Finished | None]],
    targets: Sequence[str],
    others: Sequence[str],
) -> MethodFrontier:
    rates = []
    for rate in dict.fromkeys(run.learning_rate for run, _ in ends):
        by_seed = {run.seed: found for run, found in ends if run.learning_rate == rate}
        done = {seed: found for seed, found in by_seed.items() if found is not None}
        rates.append(
            RatePoint(
                rate,
                {seed: _point(f, targets, others) for seed, f in done.items() if f.diverged is None},
                diverged=tuple(seed for seed, found in done.items() if found.diverged is not None),
                missing=tuple(seed for seed in by_seed if seed not in done),
            )
        )
    return MethodFrontier(name, rates)


def _point(found: Finished, targets: Sequence[str], others: Sequence[str]) -> Point:
    change = {code: found.after[code] - found.before[code] for code in found.before}
    return Point(
        forgetting=fmean(change[code] for code in others), gain=-fmean(change[code] for code in targets)
    )


def _notes(num_runs: int, finished: Sequence[tuple[SweepRun, Finished]]) -> list[str]:
    notes = []
    if len(finished) < num_runs:
        notes.append(f"Provisional: {len(finished)} of {num_runs} runs are finished.")
    diverged = [run.label for run, found in finished if found.diverged is not None]
    if diverged:
        notes.append(f"Diverged, and its rate therefore left out of the frontier: {'; '.join(diverged)}.")
    differing = _differing([found.before for _, found in finished if found.before])
    if differing:
        notes.append(
            f"The held-out text of {', '.join(differing)} is not the same in all runs (what a run trains on is taken out of "
            "it): each change is within one run, but they are of slightly different text."
        )
    return notes


def _differing(before: Sequence[Mapping[str, float]]) -> list[str]:
    """Languages on which the base model measures otherwise in one run than in another."""
    by_language = {code: [bits[code] for bits in before] for code in (before[0] if before else ())}
    return [code for code, values in by_language.items() if max(values) - min(values) > _SAME_TEXT]
