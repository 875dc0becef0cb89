"""What must not go on is refused in one line, and the run that is there stays as it is."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
import torch

from lape_ds.errors import UserError
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import load_recipe
from lape_ds.training.checkpoint import open_checkpoint
from lape_ds.training.export import export_model
from tests.processes import ends_of_ranks


def train(recipe: Path, *overrides: str) -> tuple[int, str]:
    """One rank in a process of its own; exit code and the lines that begin with `error:`."""
    ((code, output),) = ends_of_ranks("lape_ds.training.main", [str(recipe), *overrides], world_size=1)
    assert "Traceback" not in output, output[-3000:]
    return code, "\n".join(line for line in output.splitlines() if line.startswith("error:"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def kept(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run with neurons and text of its own, and the overrides that made it."""
    folder = tmp_path_factory.mktemp("kept")
    found = NeuronSet.load(tiny_recipe.parent / "neurons.safetensors")
    found.save(folder / "neurons.safetensors")
    lines = [f"Din hija s-sentenza numru {number}, u l-oħra wkoll." for number in range(400)]
    (folder / "mlt.txt").write_text("\n".join(lines), encoding="utf-8")
    overrides = [
        f"train.neurons={folder / 'neurons.safetensors'}",
        f"corpus.per_language.mt={{kind: files, path: {folder / 'mlt.txt'}}}",
        "train.run_name=kept",
    ]
    code, errors = train(tiny_recipe, *overrides)
    assert code == 0, errors
    return folder, overrides


def test_other_neurons_of_the_same_number_are_refused(
    tiny_recipe: Path, kept: tuple[Path, list[str]]
) -> None:
    """Else one set's masters and moments would be written into the other's rows."""
    folder, overrides = kept
    run_dir = load_recipe(str(tiny_recipe), overrides).run_dir
    before = contents(run_dir)
    path = folder / "neurons.safetensors"
    original = path.read_bytes()
    found = NeuronSet.load(path)
    moved = {code: (neurons + torch.tensor([0, -1])).int() for code, neurons in found.indices.items()}
    NeuronSet(**{**vars(found), "indices": moved}).save(path)
    code, errors = train(tiny_recipe, *overrides)
    path.write_bytes(original)
    assert code == 2
    assert "cannot go on: neurons was" in errors
    assert contents(run_dir) == before


def test_other_text_under_the_same_name_is_refused(tiny_recipe: Path, kept: tuple[Path, list[str]]) -> None:
    folder, overrides = kept
    run_dir = load_recipe(str(tiny_recipe), overrides).run_dir
    before = contents(run_dir)
    path = folder / "mlt.txt"
    original, times = path.read_text(encoding="utf-8"), path.stat()
    path.write_text(original.replace("sentenza", "kelma"), encoding="utf-8")
    code, errors = train(tiny_recipe, *overrides)
    path.write_text(original, encoding="utf-8")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # a file is known by its time
    assert code == 2
    assert "cannot go on: text of mlt_Latn was" in errors
    assert contents(run_dir) == before


def test_another_global_batch_is_refused(tiny_recipe: Path, kept: tuple[Path, list[str]]) -> None:
    _, overrides = kept
    code, errors = train(tiny_recipe, *overrides, "train.gradient_accumulation_steps=3")
    assert code == 2
    assert (
        "cannot go on: blocks a step (micro_batch_size x gradient_accumulation_steps x ranks) was 4" in errors
    )


def test_two_processes_do_not_share_a_run(tiny_recipe: Path, kept: tuple[Path, list[str]]) -> None:
    _, overrides = kept
    run_dir = load_recipe(str(tiny_recipe), overrides).run_dir
    with (run_dir.parent / ".kept.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, errors = train(tiny_recipe, *overrides)
    assert code == 2
    assert "another process is at work in" in errors


def test_a_diverged_step_is_not_kept(tiny_recipe: Path) -> None:
    """A step so large that the weights overflow: the run ends, and its last checkpoint is finite."""
    overrides = ["train.run_name=diverged", "train.optimizer.learning_rate=1e30", "train.gradient_clipping=0"]
    overrides += [
        "train.checkpoint_every_steps=1",
        "train.heldout.every_steps=1",
        "train.schedule.warmup_steps=0",
    ]
    code, errors = train(tiny_recipe, *overrides)
    assert code == 2
    assert "training has diverged" in errors
    reader = open_checkpoint(load_recipe(str(tiny_recipe), overrides).run_dir / "checkpoints", "last")
    if reader is not None:
        for name in reader.names:
            assert reader.read_key("master", name, 0, 1).isfinite().all()


def test_export_does_not_replace_a_folder_of_something_else(
    tiny_recipe: Path, kept: tuple[Path, list[str]], tmp_path: Path
) -> None:
    run_dir = load_recipe(str(tiny_recipe), kept[1]).run_dir
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError):
        export_model(run_dir, checkpoint="last", folder=tmp_path)
    assert (tmp_path / "thesis.tex").read_text(encoding="utf-8") == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_export_checks_the_files_it_wrote(
    tiny_recipe: Path, kept: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that moves outside the subnetwork on the way to the disk is seen."""
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def save_damaged(model: PreTrainedModel, *args: object, **kwargs: object) -> None:
        with torch.no_grad():
            model.get_parameter("model.norm.weight")[0] += 1
        save(model, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_damaged)
    run_dir = load_recipe(str(tiny_recipe), kept[1]).run_dir
    with pytest.raises(
        RuntimeError, match=r"model\.norm\.weight differs from the base where nothing was trained"
    ):
        export_model(run_dir, checkpoint="last", folder=tmp_path / "model")
    assert not (tmp_path / "model").exists()
