"""The course of a training: loss, held-out bits per byte, gradient and update norms over the tokens seen.

An analysis of the lines that the loop wrote (`metrics.jsonl`); needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import fmean, median
from typing import Any, Self

from rich.table import Table

from lape_ds.analysis.training.inputs import METRICS, metrics_input
from lape_ds.analysis.training.results import Rows, Subject
from lape_ds.analysis.training.run import AnalyzedRun
from lape_ds.errors import UserError
from lape_ds.training.metrics import read_metrics

# Of a step's line, what is followed over the training; the last three only where the recipe switches them on.
MEASURES = (
    "loss",
    "learning_rate",
    "gradient_norm",
    "update_norm",
    "relative_update_norm",
    "kl_per_replayed_token",
)
_END_SHARE = 0.1  # of the steps: "first" and "last" are means over so many


@dataclass(frozen=True)
class Dynamics:
    """One run's course.

    Attributes:
        subject: Whose it is.
        step: Number of each optimizer step, from 1.
        tokens: Scored tokens seen up to and with that step.
        measures: By name, of `MEASURES` those that were written: one number a step, None where that step did not say.
        heldout_step: Steps after which held-out text was measured.
        heldout_tokens: Tokens seen by then.
        heldout: Bits per byte at each of these, by language.
        diverged: Why the run ended early; None if it did not.
    """

    subject: Subject
    step: tuple[int, ...]
    tokens: tuple[int, ...]
    measures: Mapping[str, tuple[float | None, ...]]
    heldout_step: tuple[int, ...]
    heldout_tokens: tuple[int, ...]
    heldout: Mapping[str, tuple[float, ...]]
    diverged: str | None

    @property
    def others(self) -> list[str]:
        """The languages that were measured and not trained."""
        return [code for code in self.heldout if code not in self.subject.languages]

    def mean_heldout(self, codes: Sequence[str]) -> list[float]:
        """Mean bits per byte of some languages, at each measurement; empty for no languages."""
        return [fmean(values) for values in zip(*(self.heldout[code] for code in codes), strict=True)]

    def summary(self) -> dict[str, Any]:
        """Its ends: loss over the first and last tenth of the steps, held-out bits before and after; and medians of the norms."""
        part = max(1, round(_END_SHARE * len(self.step)))
        trained = [code for code in self.heldout if code in self.subject.languages]
        ends = {
            f"heldout_{name}": [means[0], means[-1]]
            for name, codes in (("trained", trained), ("others", self.others))
            if len(means := self.mean_heldout(codes)) > 1  # one measurement has no before and after
        }
        return {
            "steps": self.step[-1],
            "tokens": self.tokens[-1],
            "loss": [_mean(self.measures["loss"][:part]), _mean(self.measures["loss"][-part:])],
            **ends,
            **{
                f"median_{name}": median(_known(self.measures[name]))
                for name in ("gradient_norm", "update_norm", "relative_update_norm")
                if name in self.measures
            },
        }

    def as_json(self) -> dict[str, Any]:
        """The numbers, without the subject."""
        return {
            "summary": self.summary(),
            "steps": {"step": list(self.step), "tokens": list(self.tokens)}
            | {name: list(values) for name, values in self.measures.items()},
            "heldout": {
                "step": list(self.heldout_step),
                "tokens": list(self.heldout_tokens),
                "bits_per_byte": {code: list(values) for code, values in self.heldout.items()},
            },
            "diverged": self.diverged,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Of a run's part of the analysis's JSON."""
        steps, heldout = content["steps"], content["heldout"]
        return cls(
            subject=Subject.from_json(content),
            step=tuple(steps["step"]),
            tokens=tuple(steps["tokens"]),
            measures={name: tuple(steps[name]) for name in MEASURES if name in steps},
            heldout_step=tuple(heldout["step"]),
            heldout_tokens=tuple(heldout["tokens"]),
            heldout={code: tuple(values) for code, values in heldout["bits_per_byte"].items()},
            diverged=content["diverged"],
        )

    def rows(self) -> Rows:
        """One row a number: step, tokens, measure, language (of held-out text), value."""
        rows = [
            {"step": step, "tokens": tokens, "measure": name, "language": None, "value": value}
            for name, values in self.measures.items()
            for step, tokens, value in zip(self.step, self.tokens, values, strict=True)
        ]
        return rows + [
            {"step": step, "tokens": tokens, "measure": "bits_per_byte", "language": code, "value": value}
            for code, values in self.heldout.items()
            for step, tokens, value in zip(self.heldout_step, self.heldout_tokens, values, strict=True)
        ]


def read_dynamics(run: AnalyzedRun) -> Dynamics:
    """Reads a run's course as far as it has come.

    Raises:
        UserError: No step is done yet.
    """
    path = run.run_dir / METRICS
    lines = read_metrics(path) if path.exists() else []
    steps = [line for line in lines if "loss" in line]
    if not steps:
        raise UserError(f"{run.run_dir} has no finished step in metrics.jsonl; train first")
    tokens = list(accumulate(line["tokens"] for line in steps))
    seen = {0: 0} | {line["step"]: total for line, total in zip(steps, tokens, strict=True)}
    measured = [line for line in lines if "heldout_bits_per_byte" in line]
    codes = list(measured[0]["heldout_bits_per_byte"]) if measured else []
    return Dynamics(
        subject=run.subject(metrics_input(lines)),
        step=tuple(line["step"] for line in steps),
        tokens=tuple(tokens),
        measures={
            name: tuple(line.get(name) for line in steps)
            for name in MEASURES
            if any(name in line for line in steps)
        },
        heldout_step=tuple(line["step"] for line in measured),
        heldout_tokens=tuple(seen[line["step"]] for line in measured),
        heldout={code: tuple(line["heldout_bits_per_byte"][code] for line in measured) for code in codes},
        diverged=next((line["diverged"] for line in lines if "diverged" in line), None),
    )


def dynamics_table(results: Sequence[Dynamics]) -> Table:
    """A row for each run: from its beginning to its end."""
    table = Table(
        title="Training dynamics (loss: mean of the first and of the last tenth of the steps; norms: median over steps, updates "
        "also in % of the weights' norm)",
        title_justify="left",
    )
    headings = (
        "run",
        "steps",
        "tokens",
        "loss",
        "held-out trained",
        "others",
        "gradient norm",
        "update norm",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "run" else "right", overflow="fold")
    for one in results:
        told = one.summary()
        name = one.subject.name + ("" if one.diverged is None else " (diverged)")
        ends = [_ends(told.get(key)) for key in ("loss", "heldout_trained", "heldout_others")]
        norms = [
            f"{told[key]:.3g}" if key in told else "–"
            for key in ("median_gradient_norm", "median_update_norm")
        ]
        if "median_relative_update_norm" in told:
            norms[-1] += f"\n{100 * told['median_relative_update_norm']:.2g} %"
        table.add_row(name, f"{told['steps']:,}", f"{told['tokens']:,}", *ends, *norms)
    return table


def _ends(pair: Sequence[float] | None) -> str:
    return "–" if pair is None else f"{pair[0]:.3f} → {pair[1]:.3f}"


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float | None]) -> float:
    return fmean(_known(values))
