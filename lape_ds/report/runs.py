"""A training run as the page reads it: its folder's files, and what stands beside it in the folder of its recipe.

After sources; the sections take their numbers from here. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.report.numbers import Number, mean
from lape_ds.report.sources import Place, Reader
from lape_ds.training.run_folder import EXPORT_MARKER


@dataclass(frozen=True)
class HeldOut:
    """Bits per byte of held-out text by language.

    Attributes:
        step: After which they were measured.
        bits: By language.
    """

    step: Place
    bits: Place


@dataclass(frozen=True, eq=False)
class Run:
    """One run.

    Attributes:
        folder: Of the run.
        label: By which the page calls it: its folder's name, with as many folders above as tell it from the others.
        facts: `run.json`.
        lines: `metrics.jsonl`, by number of line; None before the first step.
        exported: `model/lape_ds_export.json`; None where it was not exported.
        before: Held-out text before the first step; None where it was not measured.
        after: The same at the exported step, else the last time it was measured after the first step.
        diverged: Why it ended early.
    """

    folder: Path
    label: str
    facts: Place
    lines: Place | None
    exported: Place | None
    before: HeldOut | None
    after: HeldOut | None
    diverged: Place | None

    @property
    def recipe(self) -> Place:
        """As resolved."""
        return self.facts["recipe"]

    @property
    def method(self) -> str:
        """Its `train.method`."""
        return self.recipe["train"]["method"].content

    @property
    def output_dir(self) -> Path:
        """Of its recipe, from where the run lies: `<output_dir>/train/<run name, which may have slashes>`."""
        name = self.recipe["train"].get("run_name")
        depth = 1 if name is None else len(name.content.split("/"))
        return self.folder.resolve().parents[depth]

    @property
    def neurons_folder(self) -> Path:
        """Where the neurons that it trained were identified."""
        named = self.recipe["train"].get("neurons")
        return self.output_dir / "identify" if named is None else Path(named.content).parent

    @property
    def trained(self) -> list[str]:
        """Codes of the languages that it trained."""
        return self.recipe["train"]["languages"].content or [self.recipe["languages"]["target"].content]

    @property
    def target_name(self) -> str:
        """Of the trained language, or how many they are."""
        return language_names(self.trained)

    @property
    def others(self) -> list[str]:
        """Codes of the languages that were measured and not trained."""
        measured = [] if self.before is None else self.before.bits.names()
        return [code for code in measured if code not in self.trained]

    @property
    def is_finished(self) -> bool:
        """Whether it came to its last step."""
        last = self.last_step
        return last is not None and last.content == self.facts["total_steps"].content

    @property
    def last_step(self) -> Place | None:
        """The last that was taken."""
        steps = (
            [] if self.lines is None else [line["step"] for _, line in self.lines.items() if "loss" in line]
        )
        return steps[-1] if steps else None

    def bits(self, codes: Sequence[str]) -> tuple[Number, Number] | None:
        """Mean bits per byte over languages before and after; None where one of them was not measured."""
        if self.before is None or self.after is None or not codes:
            return None
        ends = [self.before.bits, self.after.bits]
        if not all(code in bits for bits in ends for code in codes):
            return None
        before, after = ([Number.at(bits[code]) for code in codes] for bits in ends)
        return (before[0], after[0]) if len(codes) == 1 else (mean(before), mean(after))

    def change(self, codes: Sequence[str]) -> Number | None:
        """Of the mean bits per byte over languages: below 0 is better."""
        ends = self.bits(codes)
        return None if ends is None else ends[1] - ends[0]


def language_names(codes: Sequence[str]) -> str:
    """In English; of more than three how many they are is left to the tables."""
    names = [find_language(code).name for code in codes]
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and others"


def read_runs(folders: Sequence[Path], reader: Reader) -> list[Run]:
    """Reads run folders, in order, each once.

    Raises:
        UserError: One is no folder of a training.
    """
    unique = list(dict.fromkeys(folder.resolve() for folder in folders))
    return [_read_run(folder, label, reader) for folder, label in zip(unique, _labels(unique), strict=True)]


def _read_run(folder: Path, label: str, reader: Reader) -> Run:
    facts = reader.json(folder / "run.json")
    if facts is None or facts.get("stage") is None or facts["stage"].content != "train":
        raise UserError(
            f"{folder} is not the folder of a training (no run.json of one); give output_dir/train/<run>, or a recipe"
        )
    lines = reader.lines(folder / "metrics.jsonl")
    exported = reader.json(folder / "model" / EXPORT_MARKER)
    measured = [] if lines is None else [line for _, line in lines.items() if "heldout_bits_per_byte" in line]
    diverged = [] if lines is None else [line["diverged"] for _, line in lines.items() if "diverged" in line]
    return Run(
        folder=folder,
        label=label,
        facts=facts,
        lines=lines,
        exported=exported,
        before=next((_heldout(line) for line in measured if line["step"].content == 0), None),
        after=_after(measured, exported),
        diverged=diverged[0] if diverged else None,
    )


def _after(measured: Sequence[Place], exported: Place | None) -> HeldOut | None:
    later = [line for line in measured if line["step"].content > 0]
    if exported is not None:
        later = [line for line in later if line["step"].content == exported["step"].content]
    return _heldout(later[-1]) if later else None


def _heldout(line: Place) -> HeldOut:
    return HeldOut(line["step"], line["heldout_bits_per_byte"])


def _labels(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, longer by as many folders as tell all of them apart."""
    for depth in range(1, max((len(folder.parts) for folder in folders), default=1) + 1):
        labels = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(labels)) == len(labels):
            return labels
    raise AssertionError("paths that differ have names that differ")
