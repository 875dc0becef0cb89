"""What `lape-ds analyze` finds of a run's cross-lingual alignment: are the same sentences alike in two languages?

Between the measuring (measure.py, which needs torch) and pictures, tables and the report, which read it back without.

A language pair's values are those of mean-pooled hidden states, layer by layer: 0 is the embeddings, the last one what the head
sees. Every change has a 95 % interval over other sentences (../intervals.py), for the same sentences before and after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rich.table import Table

from lape_ds.analysis.training.results import Rows, Subject

# In the order in which they are written. Retrieval: how often the nearest sentence of the other language is the one that says the
# same, by cosine (both ways, mean first). "centred": each language's mean is subtracted first, so that a direction which all its
# sentences share (its identity, or what all text shares: anisotropy) plays no part.
MEASURES = (
    "retrieval",
    "retrieval_to_other",
    "retrieval_from_other",
    "centred_retrieval",
    "centred_retrieval_to_other",
    "centred_retrieval_from_other",
    "cosine",
    "centred_cosine",
    "cosine_above_unpaired",
    "cka",
)
# What tables, pictures and the report call those that they show, in this order.
MEASURE_NAMES = {
    "retrieval": "retrieval@1",
    "centred_retrieval": "centred retrieval@1",
    "cka": "linear CKA",
    "cosine": "cosine",
    "cosine_above_unpaired": "cosine above unpaired",
}
# In pictures and on the terminal, which have less room than the report.
SHORT_LIST = ("retrieval", "centred_retrieval", "cka", "cosine_above_unpaired")
MEAN_NAMES = {"english": "with English", "others": "with the others, mean"}


@dataclass(frozen=True)
class ParallelRequest:
    """What sentences are asked for.

    Attributes:
        path: Of the user's files, with a placeholder of the language table, e.g. `text/{code}.txt`: .txt (a sentence a line),
            .jsonl or .parquet (column `text`), in the same order in every language; None: CLDR or FLORES+.
        num_sentences: At most so many.
    """

    path: str | None = None
    num_sentences: int = 300


@dataclass(frozen=True)
class BeforeAfter:
    """One measure of one language pair, or the mean of several pairs, before and after training.

    Attributes:
        before: By layer, `[num_layers + 1]`.
        after: Alike.
        chance_before: What shuffled pairs would give, alike.
        chance_after: Alike.
        half_width: Of the change, half of its 95 % interval, alike; None where it is not known (nothing changed, say).
        mean_before: Over layers, the embeddings left out.
        mean_after: Alike.
        mean_half_width: Of the change of that mean.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    chance_before: tuple[float, ...]
    chance_after: tuple[float, ...]
    half_width: tuple[float | None, ...]
    mean_before: float
    mean_after: float
    mean_half_width: float | None

    @property
    def change(self) -> tuple[float, ...]:
        """By layer."""
        return tuple(after - before for before, after in zip(self.before, self.after, strict=True))

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Of what `as_json` gave."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        return cls(**fields)


Measured = Mapping[str, BeforeAfter]  # by measure


@dataclass(frozen=True)
class PairAlignment:
    """A trained language and another one.

    Attributes:
        language: Canonical code of the trained one.
        other: Of the other one.
        measures: By name, of `MEASURES`.
    """

    language: str
    other: str
    measures: Measured


@dataclass(frozen=True)
class Alignment:
    """One run's.

    Attributes:
        subject: Whose it is.
        source: Where the parallel sentences are from.
        num_sentences: In each language.
        num_cut: By language, of these how many were longer than the model reads and were cut.
        left_out: Languages without parallel sentences, and why.
        pairs: Every trained language with English and the others.
        means: `english`: the mean of the pairs with English (none if it was trained); `others`: of all pairs without.
    """

    subject: Subject
    source: str
    num_sentences: int
    num_cut: Mapping[str, int]
    left_out: Mapping[str, str]
    pairs: tuple[PairAlignment, ...]
    means: Mapping[str, Measured]

    @property
    def num_layers(self) -> int:
        """Of the model; measures have one value more, of the embeddings."""
        return len(next(iter(self.pairs[0].measures.values())).before) - 1

    def as_json(self) -> dict[str, Any]:
        """The numbers, without the subject."""
        return {
            "source": self.source,
            "num_sentences": self.num_sentences,
            "num_cut": dict(self.num_cut),
            "left_out": dict(self.left_out),
            "num_layers": self.num_layers,
            "means": {name: _as_json(measures) for name, measures in self.means.items()},
            "pairs": [
                {"language": pair.language, "other": pair.other, "measures": _as_json(pair.measures)}
                for pair in self.pairs
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Of a run's part of the analysis's JSON."""
        return cls(
            subject=Subject.from_json(content),
            source=content["source"],
            num_sentences=content["num_sentences"],
            num_cut=content["num_cut"],
            left_out=content["left_out"],
            pairs=tuple(
                PairAlignment(pair["language"], pair["other"], _from_json(pair["measures"]))
                for pair in content["pairs"]
            ),
            means={name: _from_json(measures) for name, measures in content["means"].items()},
        )

    def rows(self) -> Rows:
        """One row for each pair, measure and layer."""
        return [
            {
                "language": pair.language,
                "other": pair.other,
                "measure": name,
                "layer": layer,
                "before": found.before[layer],
                "after": found.after[layer],
                "change": found.change[layer],
                "half_width": found.half_width[layer],
                "chance_before": found.chance_before[layer],
                "chance_after": found.chance_after[layer],
            }
            for pair in self.pairs
            for name, found in pair.measures.items()
            for layer in range(self.num_layers + 1)
        ]


def _as_json(measures: Measured) -> dict[str, Any]:
    return {name: found.as_json() for name, found in measures.items()}


def _from_json(content: Mapping[str, Any]) -> Measured:
    return {name: BeforeAfter.from_json(found) for name, found in content.items()}


def alignment_table(results: Sequence[Alignment]) -> Table:
    """Two rows for each run: with English, and the mean of all other languages; means over layers."""
    table = Table(
        title="Alignment of parallel sentences, before → after (mean over layers; ± 95 % of the change)",
        title_justify="left",
    )
    table.add_column("run")
    table.add_column("pairs")
    for measure in SHORT_LIST:
        table.add_column(MEASURE_NAMES[measure], justify="right")
    for one in results:
        for name, measures in one.means.items():
            cells = [_told(measures[measure]) for measure in SHORT_LIST]
            table.add_row(one.subject.name, MEAN_NAMES[name], *cells)
    return table


def _told(found: BeforeAfter) -> str:
    width = "" if found.mean_half_width is None else f" ± {found.mean_half_width:.3f}"
    return f"{found.mean_before:.3f} → {found.mean_after:.3f}{width}"
