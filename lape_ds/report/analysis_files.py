"""The files of `lape-ds analyze`, and whether they are of the run as it is now; where they are not, the page says so.

Before analyses.py, which puts these notes above the numbers. An analysis says in which state everything was that it read
(analysis/training/inputs.py); the same is asked here of the run's files as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lape_ds.analysis.training.inputs import EXPORT, METRICS, PACK, metrics_input
from lape_ds.analysis.training.results import KIND, SCHEMA_VERSION
from lape_ds.errors import UserError
from lape_ds.report.blocks import Prose, command
from lape_ds.report.numbers import Code, Line, Number, Strong, count, joined, line
from lape_ds.report.runs import Run
from lape_ds.report.sources import Place, Reader
from lape_ds.training.checksums import SEAL
from lape_ds.training.run_folder import checkpoint_name, checkpoints_in
from lape_ds.writing import file_sha256


@dataclass(frozen=True)
class _Stale:
    """What an analysis is of, and what the run has now; and the commands that come before making it again."""

    what: Line
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class _State:
    """Of a model or checkpoint: its step, and which one of that step (None where that is not said)."""

    step: Place
    digest: str | None

    def is_like(self, other: _State) -> bool:
        """Whether they are the same, as far as is known."""
        known = None not in (self.digest, other.digest)
        return self.step.content == other.step.content and (not known or self.digest == other.digest)


def read_analysis_file(path: Path, again: str, reader: Reader) -> Place | None:
    """An analysis's JSON; None where it has not been made.

    Args:
        path: The file.
        again: The command that makes it.
        reader: Of the page.

    Raises:
        UserError: It is damaged, or of another version.
    """
    place = reader.json(path)
    if place is not None and [place.content.get(key) for key in ("kind", "schema_version")] != [
        KIND,
        SCHEMA_VERSION,
    ]:
        raise UserError(f"{path} was written by another version of lape-ds: make it again with `{again}`")
    return place


def stale_note(run: Run, inputs: Iterable[Place], again: str, reader: Reader) -> Prose | None:
    """What to tell above an analysis of a run; None where it is of the run as it is now.

    Args:
        run: The run.
        inputs: Of the analysis, those of this run.
        again: The command that makes the analysis.
        reader: Of the page.
    """
    found = next((stale for one in inputs if (stale := _stale(run, one, reader)) is not None), None)
    if found is None:
        return None
    commands = joined([Code(one) for one in (*found.before, again)], ", then ")
    return Prose(
        line(Strong("Not of the run as it is now. "), Code(run.label), ": ", found.what, "; make it again with ", commands),
        is_warning=True,
    )  # fmt: skip


def _stale(run: Run, read: Place, reader: Reader) -> _Stale | None:
    """Of one thing that was read; of the base there is nothing to ask: a run goes on from no other."""
    path = read["path"].content
    if path == METRICS:
        return _course(run, read)
    if path in (EXPORT, PACK):
        return _model(run, read, reader)
    file = run.folder / path
    if file.is_file() and file_sha256(file) != read["digest"].content:
        return _Stale(line("made of another ", Code(path), " than is there now"))
    return None


def _course(run: Run, read: Place) -> _Stale | None:
    if run.lines is None or run.last_step is None:
        return None
    if read["step"].content != run.last_step.content:
        return _Stale(line("made of ", _step(read["step"]), "; the run is at ", _step(run.last_step), " now"))
    if metrics_input([one.content for _, one in run.lines.items()]).digest != read["digest"].content:
        return _Stale(line("made of other lines of ", Code(METRICS), " than it has now"))
    return None


def _model(run: Run, read: Place, reader: Reader) -> _Stale | None:
    """Of the trained model: against the checkpoints, and against what is exported or packed now."""
    if read.get("step") is None:  # a pack that was not made from the run's checkpoints
        return _packed(run, read)
    is_pack = read["path"].content == PACK
    of = _State(read["step"], None if is_pack else read["digest"].content)
    exported = None if run.exported is None else _exported(run.exported)
    kept = list(_checkpoints(run, reader))
    if kept and not any((exported or of).is_like(one) for _, one in kept):
        return _Stale(line(_made_of(of), "; ", *_now(of, kept)), (_export(run, reader, is_pack=is_pack),))
    if exported is None:
        return _packed(run, read)
    if not exported.is_like(of):
        return _Stale(line(_made_of(of), "; what is exported now is of ", _which(of, exported)))
    return None


def _packed(run: Run, read: Place) -> _Stale | None:
    file = run.folder / PACK
    if read["path"].content != PACK or not file.is_file() or file_sha256(file) == read["digest"].content:
        return None
    return _Stale(line("made of another ", Code(PACK), " than is there now"))


def _exported(marker: Place) -> _State:
    checkpoint = marker.get("checkpoint")
    return _State(marker["step"], None if checkpoint is None else checkpoint.content)


def _checkpoints(run: Run, reader: Reader) -> Iterator[tuple[str, _State]]:
    """The best and the last, as the run's newest checkpoint has them; none where checkpoints were not kept."""
    newest = _newest(run, reader)
    if newest is None:
        return
    best = newest.get("best")
    if best is not None and best["step"].content not in (0, newest["step"].content):
        name = checkpoint_name(best["step"].content)
        state = reader.json(run.folder / "checkpoints" / name / "state.json")
        yield "best", _State(best["step"], None if state is None else _digest(state))
    yield "last", _State(newest["step"], _digest(newest))


def _newest(run: Run, reader: Reader) -> Place | None:
    newest = next(iter(checkpoints_in(run.folder / "checkpoints")), None)
    return None if newest is None else reader.json(newest / "state.json")


def _digest(state: Place) -> str | None:
    found = state.get(SEAL)
    return None if found is None else found.content


def _export(run: Run, reader: Reader, *, is_pack: bool) -> str:
    """The command for the best checkpoint, or the last one where no step improved on the base."""
    newest = _newest(run, reader)
    best = None if newest is None else newest.get("best", "step")
    words = ["pack", "make"] if is_pack else ["export"]
    which = ["--checkpoint", "last"] if best is not None and best.content == 0 else []
    return command("lape-ds", *words, run.folder, *which)


def _made_of(of: _State) -> Line:
    return line("made of the model of ", _step(of.step))


def _now(of: _State, kept: list[tuple[str, _State]]) -> Iterator[Any]:
    yield "the run's "
    yield joined([line(f"{name} checkpoint is of ", _which(of, one)) for name, one in kept], ", its ")
    yield " now"


def _which(of: _State, now: _State) -> Line:
    """Of equal steps, that it is another one all the same."""
    return line("another " if of.step.content == now.step.content else "", _step(now.step))


def _step(place: Place) -> Line:
    return line("step ", count(Number.at(place)))
