"""What `lape-ds analyze` finds of a run's activations: how often are neurons active on a text, before and after training?

Between the measuring (activation_measures.py, which needs torch) and pictures, tables and the report, which read it back without.

A neuron's probability is the share of a language's held-out tokens on which its gate is positive, counted as identification does.
Neurons are looked at in groups: the trained ones (whole-weight methods train no single ones; the neurons that identification
found for the trained languages stand in their place), as many random others in every layer, and all. What the groups of a run
have in common is the training's general effect; what only its neurons show is theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self

from rich.table import Table

from lape_ds.analysis.training.results import Rows, Subject

# Limits of the histogram's bins: changes are mostly small, and both signs matter.
EDGES = (-1.0, -0.3, -0.1, -0.03, -0.01, -0.003, -0.001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
GROUP_NAMES = {
    "trained": "trained neurons",
    "identified": "the language's neurons",
    "random": "as many random others",
    "all": "all neurons",
}


@dataclass(frozen=True)
class GroupChange:
    """One group of neurons on one language's text.

    Attributes:
        before: Mean probability of the group.
        after: Alike.
        half_width: Of the change of the mean, half of its 95 % interval over other text (16 buckets of documents); None where it
            is not known.
        rising: Share of the neurons that are active more often than before.
        falling: Less often.
        mean_absolute: Mean of the changes' sizes.
        by_layer: Mean change of the group's neurons in each layer; None where it has none.
        histogram: Neurons by their change, between neighbours of `EDGES`.
    """

    before: float
    after: float
    half_width: float | None
    rising: float
    falling: float
    mean_absolute: float
    by_layer: tuple[float | None, ...]
    histogram: tuple[int, ...]

    @property
    def change(self) -> float:
        """Of the mean."""
        return self.after - self.before

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        told = {
            name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()
        }
        return told | {"change": self.change}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Of what `as_json` gave."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        del fields["change"]
        return cls(**fields)


@dataclass(frozen=True)
class Points:
    """Single neurons of a group on one language's text.

    Attributes:
        layer: `[n]`.
        index: Within the layer, alike.
        before: Probability, alike.
        after: Alike.
    """

    layer: tuple[int, ...]
    index: tuple[int, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass(frozen=True)
class Activations:
    """One run's.

    Attributes:
        subject: Whose it is.
        num_tokens: By language, the held-out tokens that were counted; first the trained languages.
        left_out: Languages without text, and why.
        num_neurons: By group.
        changes: By group and language.
        points: By group, all but `all`, and language: every neuron.
    """

    subject: Subject
    num_tokens: Mapping[str, int]
    left_out: Mapping[str, str]
    num_neurons: Mapping[str, int]
    changes: Mapping[str, Mapping[str, GroupChange]]
    points: Mapping[str, Mapping[str, Points]]

    @property
    def others(self) -> list[str]:
        """Languages that were counted and not trained."""
        return [code for code in self.num_tokens if code not in self.subject.languages]

    def as_json(self) -> dict[str, Any]:
        """The numbers, without the subject."""
        return {
            "num_tokens": dict(self.num_tokens),
            "left_out": dict(self.left_out),
            "num_neurons": dict(self.num_neurons),
            "edges": list(EDGES),
            "changes": {
                group: {code: change.as_json() for code, change in by_language.items()}
                for group, by_language in self.changes.items()
            },
            "points": {
                group: {
                    code: {name: list(values) for name, values in vars(points).items()}
                    for code, points in by_language.items()
                    if code in self.subject.languages
                }
                for group, by_language in self.points.items()
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Of a run's part of the analysis's JSON: `points` of the trained languages only; the table has all."""
        return cls(
            subject=Subject.from_json(content),
            num_tokens=content["num_tokens"],
            left_out=content["left_out"],
            num_neurons=content["num_neurons"],
            changes={
                group: {code: GroupChange.from_json(change) for code, change in by_language.items()}
                for group, by_language in content["changes"].items()
            },
            points={
                group: {
                    code: Points(**{name: tuple(values) for name, values in points.items()})
                    for code, points in by_language.items()
                }
                for group, by_language in content["points"].items()
            },
        )

    def rows(self) -> Rows:
        """One row for each neuron of the groups (but for `all`) and language, on all languages' text."""
        return [
            {
                "group": group,
                "language": code,
                "layer": layer,
                "index": index,
                "before": before,
                "after": after,
                "change": after - before,
            }
            for group, by_language in self.points.items()
            for code, points in by_language.items()
            for layer, index, before, after in zip(
                points.layer, points.index, points.before, points.after, strict=True
            )
        ]


def activations_table(results: Sequence[Activations]) -> Table:
    """A row for each run and group: on trained languages' text and on the others'."""
    table = Table(
        title="p(gate > 0) on held-out text, before → after (± 95 % of the change; means over languages without)",
        title_justify="left",
    )
    for heading in ("run", "neurons"):
        table.add_column(heading)
    for heading in ("number", "trained text", "rising", "other text", "rising"):
        table.add_column(heading, justify="right")
    for one in results:
        for group, by_language in one.changes.items():
            cells = []
            for codes in (one.subject.languages, one.others):
                some = [by_language[code] for code in codes]
                cells += [_told(some), _share(some)]
            name = GROUP_NAMES[group]
            table.add_row(one.subject.name, name, f"{one.num_neurons[group]:,}", *cells)
    return table


def _told(some: Sequence[GroupChange]) -> str:
    if not some:
        return "–"
    before, after = (fmean(getattr(one, name) for one in some) for name in ("before", "after"))
    width = some[0].half_width if len(some) == 1 else None
    return f"{before:.4f} → {after:.4f}" + ("" if width is None else f" ± {width:.4f}")


def _share(some: Sequence[GroupChange]) -> str:
    return f"{fmean(one.rising for one in some):.0%}" if some else "–"
