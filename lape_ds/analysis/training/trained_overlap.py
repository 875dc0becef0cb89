"""Whose neurons a run trained: its set against every language's of the identification.

An analysis of a run; neurons/overlap.py compares the languages of one set with each other. Needs torch only where sets are read,
so that the report can read the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from rich.table import Table

from lape_ds.analysis.training.results import Rows, Subject
from lape_ds.analysis.training.run import AnalyzedRun
from lape_ds.errors import UserError
from lape_ds.recipe import NEURON_METHODS

_MOST_ROWS = 20  # on the terminal, of each run


@dataclass(frozen=True)
class LanguageShare:
    """What a trained set has in common with one language's set.

    Attributes:
        code: Of the language.
        family: Its family.
        neurons: Of the language.
        shared: Of both.
        share_of_trained: shared / trained.
        jaccard: shared / either.
        expected: What two sets of these sizes share by chance, on average.
    """

    code: str
    family: str
    neurons: int
    shared: int
    share_of_trained: float
    jaccard: float
    expected: float


@dataclass(frozen=True)
class TrainedOverlap:
    """One run's.

    Attributes:
        subject: Whose it is.
        num_neurons: That were trained.
        num_model_neurons: Of the model.
        per_layer: Trained neurons of each layer.
        exclusive: Trained neurons that no language has but the trained ones.
        languages: All of the identification, relatives beside each other.
    """

    subject: Subject
    num_neurons: int
    num_model_neurons: int
    per_layer: tuple[int, ...]
    exclusive: int
    languages: tuple[LanguageShare, ...]

    def as_json(self) -> dict[str, Any]:
        """The numbers, without the subject."""
        return {
            "num_neurons": self.num_neurons,
            "num_model_neurons": self.num_model_neurons,
            "per_layer": list(self.per_layer),
            "exclusive": self.exclusive,
            "sets": [asdict(one) for one in self.languages],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Of a run's part of the analysis's JSON."""
        return cls(
            subject=Subject.from_json(content),
            num_neurons=content["num_neurons"],
            num_model_neurons=content["num_model_neurons"],
            per_layer=tuple(content["per_layer"]),
            exclusive=content["exclusive"],
            languages=tuple(LanguageShare(**one) for one in content["sets"]),
        )

    def rows(self) -> Rows:
        """One row a language."""
        return [asdict(one) for one in self.languages]


def measure_trained_overlap(run: AnalyzedRun) -> TrainedOverlap:
    """Compares what a run trained with the set that its neurons were chosen from.

    Raises:
        UserError: The run trained whole weights, or the set is not there or of another model.
    """
    method = run.recipe.train.method
    if method not in NEURON_METHODS:
        raise UserError(
            f"{run.run_dir} was trained with train.method={method}, which trains no single neurons"
        )
    import torch

    from lape_ds.analysis.neurons.overlap import by_family, flat_neurons, set_families
    from lape_ds.neurons.neuron_set import NeuronSet

    own_path = run.run_dir / "neurons.safetensors"
    path = run.recipe.train.neurons or run.recipe.identify_dir / "neurons.safetensors"
    if not path.exists():
        raise UserError(
            f"no neuron set at {path}, from which {run.run_dir} was trained; identify again, or restore it"
        )
    own, found = NeuronSet.load(own_path), NeuronSet.load(path)
    found.check_model(
        own.model_fingerprint, num_layers=own.num_layers, neurons_per_layer=own.neurons_per_layer
    )
    trained = torch.cat([flat_neurons(own, code) for code in own.languages]).unique()
    size = own.num_layers * own.neurons_per_layer
    family_of = dict(zip(found.languages, set_families(found), strict=True))
    others, languages = [], []
    for code in by_family(family_of):
        neurons = flat_neurons(found, code)
        shared = int(torch.isin(trained, neurons).sum())
        languages.append(
            LanguageShare(
                code=code,
                family=family_of[code],
                neurons=len(neurons),
                shared=shared,
                share_of_trained=shared / len(trained),
                jaccard=shared / (len(trained) + len(neurons) - shared),
                expected=len(trained) * len(neurons) / size,
            )
        )
        others += [neurons] if code not in run.recipe.trained_languages else []
    foreign = (
        torch.isin(trained, torch.cat(others)) if others else torch.zeros(len(trained), dtype=torch.bool)
    )
    per_layer = torch.bincount(trained // own.neurons_per_layer, minlength=own.num_layers)
    return TrainedOverlap(
        subject=run.subject(run.neuron_set(own_path), run.neuron_set(path)),
        num_neurons=len(trained),
        num_model_neurons=size,
        per_layer=tuple(per_layer.tolist()),
        exclusive=int((~foreign).sum()),
        languages=tuple(languages),
    )


def trained_overlap_table(results: Sequence[TrainedOverlap]) -> Table:
    """Of each run the languages that share most with it."""
    table = Table(
        title="Trained neurons that are also a language's (beside what sets of these sizes share by chance)",
        title_justify="left",
    )
    for heading in ("run", "language", "neurons", "shared", "of trained", "by chance", "Jaccard"):
        table.add_column(heading, justify="left" if heading in ("run", "language") else "right")
    for one in results:
        name = f"{one.subject.name}: {one.num_neurons:,}, {one.exclusive:,} no other's"
        shown = sorted(one.languages, key=lambda other: -other.shared)[:_MOST_ROWS]
        for number, other in enumerate(shown):
            table.add_row(
                "" if number else name,
                other.code + (" (trained)" if other.code in one.subject.languages else ""),
                f"{other.neurons:,}",
                f"{other.shared:,}",
                f"{100 * other.share_of_trained:.1f} %",
                f"{100 * other.expected / one.num_neurons:.1f} %",
                f"{other.jaccard:.3f}",
                end_section=number + 1 == len(shown),
            )
    return table
