"""Any damage to a checkpoint is seen, and which ones are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lape_ds.errors import UserError
from lape_ds.training.checkpoint import (
    SCHEMA_VERSION,
    CheckpointReader,
    CheckpointState,
    DamagedCheckpoint,
    checkpoint_name,
    checkpoints_in,
    open_checkpoint,
)
from lape_ds.training.checksums import file_seal, sealed
from lape_ds.training.pruning import prune
from lape_ds.writing import write_json


def make(folder: Path, step: int, *, best: int | None = None) -> Path:
    """A checkpoint of two ranks, as saving.py writes it."""
    made = folder / checkpoint_name(step)
    made.mkdir(parents=True)
    for rank in range(2):
        tensors = {f"master|w|{3 * rank}": torch.arange(3.0) + step, f"exp_avg|w|{3 * rank}": torch.ones(3)}
        save_file(tensors, made / f"rank-0000{rank}.safetensors")
    seals = {path.name: file_seal(path) for path in made.glob("rank-*")}
    measured: dict[str, float] | None = None if best is None else {"step": best, "bits_per_byte": 2.5}
    state = CheckpointState(step, "base", 6, {"method": "full"}, measured)
    content = {"schema_version": SCHEMA_VERSION, **vars(state), "scalars": {"step": 7.0}, "files": seals}
    write_json(made / "state.json", sealed(content))
    return made


def opened(folder: Path) -> tuple[CheckpointState, torch.Tensor]:
    reader = CheckpointReader(folder)
    reader.verify()
    return reader.state, reader.read_key("master", "w", 0, 6)


def test_whole_checkpoint_is_read(tmp_path: Path) -> None:
    state, values = opened(make(tmp_path, 4, best=3))
    assert state == CheckpointState(4, "base", 6, {"method": "full"}, {"step": 3, "bits_per_byte": 2.5})
    assert values.tolist() == [4, 5, 6, 4, 5, 6]


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00001.safetensors", "state.json"])
def test_every_flipped_bit_is_seen(tmp_path: Path, name: str) -> None:
    """Or changes nothing that is read: white space in state.json."""
    made = make(tmp_path, 4, best=3)
    state, values = opened(made)
    original = (made / name).read_bytes()
    seen = 0
    for position in range(len(original)):
        content = bytearray(original)
        content[position] ^= 1 << position % 8
        (made / name).write_bytes(content)
        if name == "state.json" and {original[position], content[position]} <= set(b" \n\r\t"):
            found = opened(made)
            assert found[0] == state
            assert torch.equal(found[1], values)
            continue
        with pytest.raises(DamagedCheckpoint, match=name):
            opened(made)
        seen += 1
    assert seen > 0.5 * len(original)


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00001.safetensors", "state.json"])
def test_every_truncation_and_a_missing_file_are_seen(tmp_path: Path, name: str) -> None:
    made = make(tmp_path, 4)
    original = (made / name).read_bytes()
    for length in range(len(original) - 1):  # the last byte of state.json is white space
        (made / name).write_bytes(original[:length])
        with pytest.raises(DamagedCheckpoint, match=name):
            opened(made)
    (made / name).unlink()
    with pytest.raises(DamagedCheckpoint, match=f"{name} is missing"):
        opened(made)


def test_ranks_share_the_verifying(tmp_path: Path) -> None:
    """Each file is read by one of them."""
    made = make(tmp_path, 4)
    path = made / "rank-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    CheckpointReader(made).verify(0, 2)
    with pytest.raises(DamagedCheckpoint):
        CheckpointReader(made).verify(1, 2)


def test_other_versions_are_refused_and_not_called_damaged(tmp_path: Path) -> None:
    made = make(tmp_path, 4)
    for content in ({"schema_version": 1, "step": 4}, sealed({"schema_version": SCHEMA_VERSION + 1})):
        write_json(made / "state.json", content)
        with pytest.raises(UserError, match="another version of lape-ds") as caught:
            CheckpointReader(made)
        assert not isinstance(caught.value, DamagedCheckpoint)


def test_pruning_keeps_the_newest_and_their_best(tmp_path: Path) -> None:
    for step, best in ((2, 2), (4, 2), (6, 6), (8, 6), (10, 10)):
        make(tmp_path, step, best=best)
        (tmp_path / ".step-00000099.tmp").mkdir(exist_ok=True)
        prune(tmp_path, keep=2)
        names = {path.name for path in tmp_path.iterdir()}
        expected = {2: {2}, 4: {2, 4}, 6: {2, 4, 6}, 8: {6, 8}, 10: {6, 8, 10}}[step]
        assert names == {checkpoint_name(kept) for kept in expected}


def test_a_damaged_newest_still_has_its_best_before_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for step, best in ((2, 2), (4, 2), (6, 6)):
        make(tmp_path, step, best=best)
        prune(tmp_path, keep=2)
    (checkpoints_in(tmp_path)[0] / "rank-00000.safetensors").unlink()
    best = open_checkpoint(tmp_path, "best")
    assert best is not None
    assert best.state.step == 2
    warning = capfd.readouterr().err
    assert "step-00000006 is damaged: rank-00000.safetensors is missing; the checkpoint before" in warning
    assert warning.count("\n") == 1


def test_a_best_of_step_0_is_none(tmp_path: Path) -> None:
    make(tmp_path, 2, best=0)
    assert open_checkpoint(tmp_path, "best") is None
    assert open_checkpoint(tmp_path / "nowhere", "last") is None
