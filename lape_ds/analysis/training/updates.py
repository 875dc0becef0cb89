"""What training changed in the weights, layer by layer and projection by projection: how much, where to, in how many directions.

The numbers of update_measures.py, which takes them of two models; needs no torch, so that the report can read them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Self

from rich.markup import escape
from rich.table import Table

from lape_ds.analysis.training.inputs import Input
from lape_ds.analysis.training.results import Rows, Subject

FFN_PARTS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class PartUpdate:
    """The change dW of one part of one layer, W being its weights before training. Norms are Frobenius's.

    Attributes:
        part: `gate_proj`, `up_proj`, `down_proj`; other matrices by their place in the layer, e.g. `self_attn.q_proj`; `vectors`
            (norms and biases); outside the layers `embeddings`, `head`, `vectors`.
        layer: From 0; None outside the layers.
        num_weights: Of the part.
        num_changed: Of which any bit differs.
        norm: Of W.
        change_norm: Of dW.
        changed_norm: Of W where it changed.
        dot: Of dW with W.
        effective_rank: exp of the entropy of dW's singular values, normalised to sum 1; None of vectors, and where nothing
            changed. Source: Roy and Vetterli, The effective rank, EUSIPCO 2007.
        stable_rank: Squared norm of dW over its largest singular value squared; None likewise.
        full_rank: The most that either could be for a matrix of this shape; None of vectors.
    """

    part: str
    layer: int | None
    num_weights: int
    num_changed: int
    norm: float
    change_norm: float
    changed_norm: float
    dot: float
    effective_rank: float | None
    stable_rank: float | None
    full_rank: int | None

    @property
    def relative(self) -> float | None:
        """||dW|| / ||W||; None where W is 0."""
        return self.change_norm / self.norm if self.norm else None

    @property
    def relative_to_changed(self) -> float | None:
        """||dW|| / ||W where it changed||: how far the weights that moved have moved."""
        return self.change_norm / self.changed_norm if self.changed_norm else None

    @property
    def share_changed(self) -> float:
        """Of its weights."""
        return self.num_changed / self.num_weights

    @property
    def cosine(self) -> float | None:
        """Of dW with W: positive where weights grew, negative where they shrank; None where nothing changed."""
        return self.dot / (self.norm * self.change_norm) if self.norm and self.change_norm else None

    @classmethod
    def together(cls, name: str, parts: Sequence[PartUpdate]) -> Self:
        """Several as if they were one, but for the ranks: means over the matrices that changed."""
        return cls(
            part=name,
            layer=None,
            num_weights=sum(one.num_weights for one in parts),
            num_changed=sum(one.num_changed for one in parts),
            norm=math.hypot(*(one.norm for one in parts)),
            change_norm=math.hypot(*(one.change_norm for one in parts)),
            changed_norm=math.hypot(*(one.changed_norm for one in parts)),
            dot=math.fsum(one.dot for one in parts),
            effective_rank=_mean([one.effective_rank for one in parts]),
            stable_rank=_mean([one.stable_rank for one in parts]),
            full_rank=max((one.full_rank for one in parts if one.full_rank is not None), default=None),
        )

    def as_json(self) -> dict[str, Any]:
        """All fields, and what follows from them."""
        return asdict(self) | {name: getattr(self, name) for name in DERIVED}


DERIVED = ("relative", "relative_to_changed", "share_changed", "cosine")
_FIELDS = tuple(PartUpdate.__dataclass_fields__)


@dataclass(frozen=True)
class Updates:
    """One run's.

    Attributes:
        subject: Whose they are.
        dtype: In which both models were compared: a change below its rounding is none.
        parts: Of every layer, and outside of them.
    """

    subject: Subject
    dtype: str
    parts: tuple[PartUpdate, ...]

    @property
    def num_layers(self) -> int:
        """Of the model."""
        return 1 + max(one.layer for one in self.parts if one.layer is not None)

    @property
    def part_names(self) -> list[str]:
        """In order: feed-forward projections first."""
        names = dict.fromkeys(one.part for one in self.parts)
        return sorted(
            names, key=lambda name: (name not in FFN_PARTS, FFN_PARTS.index(name) if name in FFN_PARTS else 0)
        )

    def of(self, part: str) -> list[PartUpdate]:
        """One part in every layer that has it, first layer first."""
        return [one for one in self.parts if one.part == part]

    def total(self, part: str | None = None) -> PartUpdate:
        """One part in all layers together, or (`all`) the whole model; ranks are means over the matrices that changed."""
        return PartUpdate.together(part or "all", self.parts if part is None else self.of(part))

    def as_json(self) -> dict[str, Any]:
        """The numbers, without the subject."""
        return {
            "dtype": self.dtype,
            "total": self.total().as_json(),
            "parts": {name: self.total(name).as_json() for name in self.part_names},
            "layers": [one.as_json() for one in self.parts],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Of a run's part of the analysis's JSON."""
        parts = (PartUpdate(**{name: one[name] for name in _FIELDS}) for one in content["layers"])
        return cls(Subject.from_json(content), content["dtype"], tuple(parts))

    def rows(self) -> Rows:
        """One row a number: layer, part, measure, value; a measure that is not defined has no row."""
        return [
            {"layer": one.layer, "part": one.part, "measure": name, "value": float(value)}
            for one in self.parts
            for name, value in one.as_json().items()
            if name not in ("layer", "part") and value is not None
        ]


@dataclass(frozen=True)
class PartDirections:
    """Inner products of several runs' changes of one part of one layer.

    Attributes:
        part: As `PartUpdate.part`.
        layer: From 0; None outside the layers.
        dots: `[runs][runs]`; squared norms on the diagonal.
    """

    part: str
    layer: int | None
    dots: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Directions:
    """Whether several runs of one base changed it in the same direction.

    Attributes:
        names: Of the runs.
        inputs: What was read: the base, then each run's model.
        parts: Of every layer, and outside of them.
    """

    names: tuple[str, ...]
    inputs: tuple[Input, ...]
    parts: tuple[PartDirections, ...]

    def cosines(self, part: str | None = None, layer: int | None = None) -> list[list[float | None]]:
        """Between every two runs, of one part (in one layer) or of all weights; None where one of the two changed nothing."""
        chosen = [
            one
            for one in self.parts
            if (part is None or one.part == part) and (layer is None or one.layer == layer)
        ]
        places = range(len(self.names))
        dots = [[math.fsum(one.dots[a][b] for one in chosen) for b in places] for a in places]
        norms = [math.sqrt(dots[place][place]) for place in places]
        return [
            [dots[a][b] / (norms[a] * norms[b]) if norms[a] and norms[b] else None for b in places]
            for a in places
        ]

    def as_json(self) -> dict[str, Any]:
        """All numbers."""
        names = dict.fromkeys(one.part for one in self.parts)
        return {
            "runs": list(self.names),
            "inputs": [one.as_json() for one in self.inputs],
            "cosine": self.cosines(),
            "parts": {name: self.cosines(name) for name in names},
            "layers": [
                {"part": one.part, "layer": one.layer, "dots": [list(row) for row in one.dots]}
                for one in self.parts
            ],
        }

    def rows(self) -> Rows:
        """One row a pair of runs in each part of each layer."""
        return [
            {"layer": one.layer, "part": one.part, "run": self.names[a], "other": self.names[b], "dot": dot}
            for one in self.parts
            for a, row in enumerate(one.dots)
            for b, dot in enumerate(row)
        ]


def updates_table(results: Sequence[Updates]) -> Table:
    """Runs side by side: a row for each part that changed, and for the whole model."""
    table = Table(
        title="Weight updates dW (over all layers; ranks: mean over the matrices that changed)",
        title_justify="left",
    )
    table.add_column("", overflow="fold")  # names may be long; numbers are never cut off
    for heading in (
        "|dW|\n/|W|",
        "changed",
        "|dW|/|W|\nthere",
        "cosine\ndW, W",
        "eff.\nrank",
        "stable\nrank",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in results:
        table.add_row(f"[bold]{escape(one.subject.name)}[/] ({one.subject.method})")
        totals = [total for name in one.part_names if (total := one.total(name)).num_changed]
        for total in [*totals, one.total()]:
            whole = total.part == "all"
            table.add_row(
                f"  {total.part}",
                _told(total.relative, ".3g"),
                f"{100 * total.share_changed:.3g} %",
                _told(total.relative_to_changed, ".3g"),
                _told(total.cosine, "+.3f"),
                _told(None if whole else total.effective_rank, ".1f"),
                _told(None if whole else total.stable_rank, ".1f"),
                end_section=whole,
            )
    return table


def directions_table(directions: Directions) -> Table:
    """Cosines between the runs' changes of all weights."""
    table = Table(title="Cosine of the weight updates of two runs, all weights", title_justify="left")
    for heading in ("run", *directions.names):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for name, row in zip(directions.names, directions.cosines(), strict=True):
        table.add_row(name, *(_told(value, "+.3f") for value in row))
    return table


def _told(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
