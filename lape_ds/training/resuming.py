"""Where an interrupted run goes on: at its newest checkpoint that is whole.

Part of set-up, between the recipe's identity and the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lape_ds.distributed.ranks import by_first, gather, rank, together, world_size
from lape_ds.errors import UserError
from lape_ds.training.checkpoint import (
    CheckpointReader,
    DamagedCheckpoint,
    checkpoints_in,
    first_whole,
    warn_of,
)
from lape_ds.training.pruning import set_aside


def resumed_checkpoint(
    run_dir: Path, base_fingerprint: str, identity: Mapping[str, str]
) -> CheckpointReader | None:
    """The checkpoint to go on from; None where the run begins. Collective; the first rank holds the run's lock.

    Damaged ones that are newer are told of and set aside, so that the run writes these steps anew.

    Raises:
        UserError: The checkpoint is of another run than this, or there are only damaged ones.
    """
    folders = by_first(lambda: checkpoints_in(run_dir / "checkpoints"))
    found, damaged = first_whole(
        folders, lambda folder: _open_together(folder, run_dir, base_fingerprint, identity)
    )
    if damaged:

        def warn_and_set_aside() -> None:
            warn_of(damaged)
            set_aside(folders[: len(damaged)])

        by_first(warn_and_set_aside)
    return found


def _open_together(
    folder: Path, run_dir: Path, base_fingerprint: str, identity: Mapping[str, str]
) -> CheckpointReader:
    """Opens a checkpoint on every rank. Its files are verified once, not once per rank: each rank takes its share.

    All read the same files of one shared filesystem; a full checkpoint of a 12B model has 150 GB.
    """

    def attempt() -> CheckpointReader | str:
        try:
            reader = CheckpointReader(folder)
            _check_identity(reader, run_dir, base_fingerprint, identity)
            reader.verify(rank(), world_size())
        except DamagedCheckpoint as error:  # the others must hear of it, and go to the next one too
            return str(error)
        return reader

    result = together(attempt)
    reasons = [reason for reason in gather(result if isinstance(result, str) else None) if reason is not None]
    if reasons or isinstance(result, str):
        raise DamagedCheckpoint(reasons[0])
    return result


def _check_identity(
    checkpoint: CheckpointReader, run_dir: Path, base_fingerprint: str, identity: Mapping[str, str]
) -> None:
    now = {"base model": base_fingerprint[:16], **identity}
    then = {"base model": checkpoint.state.base_fingerprint[:16], **checkpoint.state.identity}
    for name in dict.fromkeys([*then, *now]):
        if now.get(name) != then.get(name):
            raise UserError(
                f"{run_dir} cannot go on: {name} was {then.get(name)} when it stopped and is {now.get(name)} now; "
                "restore that, or begin another run with train.run_name=… (train.resume=never discards this one)"
            )
