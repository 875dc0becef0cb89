"""Analyses of an earlier state of their run are told of; those of the run as it is are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from shlex import quote
from typing import Any

import pytest

from lape_ds.errors import UserError
from lape_ds.recipe import load_recipe
from lape_ds.report.analysis_files import read_analysis_file, stale_note
from lape_ds.report.page import write_report
from lape_ds.report.runs import read_runs
from lape_ds.report.sources import Reader
from lape_ds.report.subjects import find_subjects
from tests.report.made import EXPORT, STEPS, write_recipe, write_run
from tests.report.made_analyses import write_analyses, write_directions
from tests.report.tracing import PageReader, read_page, untraceable

OTHER = {"step": 3, "checkpoint": "of another step", "num_neurons": 1234}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Trained to its last step, exported, analysed."""
    recipe = load_recipe(write_recipe(tmp_path))
    folder = write_run(recipe, gain=0.3, forgetting=0.1, trained=99, exported=True)
    write_analyses(folder, recipe)
    return folder


def write_checkpoint(run: Path, step: int, digest: str, best: int | None) -> None:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    told = {"step": step, "best": None if best is None else {"step": best, "bits_per_byte": 1.5}}
    (folder / "state.json").write_text(json.dumps(told | {"xxh3_128": digest}))


def export(run: Path, marker: dict[str, Any]) -> None:
    (run / "model" / "lape_ds_export.json").write_text(json.dumps(marker))


def train_on(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": STEPS + 1, "tokens": 1000, "loss": 2.0, "seconds": 1.0}) + "\n")


def notes(run: Path) -> dict[str, str]:
    """What is told of each analysis that is not of the run as it is, as a reader sees it."""
    reader = Reader(run)
    (read,) = read_runs([run], reader)
    found: dict[str, str] = {}
    for path in sorted((run / "analysis").glob("*.json")):
        place = read_analysis_file(path, "AGAIN", reader)
        assert place is not None
        note = stale_note(read, place["inputs"], "AGAIN", reader)
        if note is not None:
            said = words(note.text.__html__())
            found[path.stem] = said.removeprefix("Not of the run as it is now. subnetwork: ")
    return found


def words(html: str) -> str:
    reader = PageReader()
    reader.feed(html)
    return "".join(reader.text)


OF_MODEL = ("updates", "alignment", "activations")


def test_nothing_is_told_of_the_run_as_it_is(run: Path) -> None:
    assert notes(run) == {}
    write_checkpoint(run, STEPS, EXPORT["checkpoint"], best=STEPS)
    assert notes(run) == {}
    shutil.rmtree(run / "model")  # to save room
    (run / "neurons.safetensors").unlink()
    assert notes(run) == {}


def test_a_training_that_went_on(run: Path) -> None:
    """The course is of fewer steps; the model is still the best one, the only one exported."""
    write_checkpoint(run, STEPS, EXPORT["checkpoint"], best=STEPS)
    write_checkpoint(run, STEPS + 1, "new", best=STEPS)
    train_on(run)
    assert notes(run) == {"dynamics": "made of step 7; the run is at step 8 now; make it again with AGAIN"}
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text().replace('"step": 8', '"step": 7'))
    assert notes(run) == {
        "dynamics": "made of other lines of metrics.jsonl than it has now; make it again with AGAIN"
    }


def test_another_export(run: Path) -> None:
    export(run, OTHER)
    told = "made of the model of step 7; what is exported now is of step 3; make it again with AGAIN"
    assert notes(run) == dict.fromkeys(OF_MODEL, told)
    export(run, EXPORT | {"checkpoint": "trained anew from step 3"})
    assert set(notes(run).values()) == {told.replace("of step 3", "of another step 7")}
    export(
        run, {"step": STEPS, "num_neurons": 1234}
    )  # by an earlier version, which does not say which checkpoint
    assert notes(run) == {}


def test_an_export_that_is_neither_of_the_best_nor_of_the_last_checkpoint(run: Path) -> None:
    write_checkpoint(run, 8, "best", best=8)
    write_checkpoint(run, 9, "last", best=8)
    told = (
        "made of the model of step 7; the run's best checkpoint is of step 8, its last checkpoint is of step 9 now; "
        f"make it again with lape-ds export {quote(str(run))}, then AGAIN"
    )
    assert notes(run) == dict.fromkeys(OF_MODEL, told)
    export(run, {"step": 8, "checkpoint": "best"})
    told = "made of the model of step 7; what is exported now is of step 8; make it again with AGAIN"
    assert notes(run) == dict.fromkeys(OF_MODEL, told)
    shutil.rmtree(run / "model")  # the model that was analysed is still not a current one
    assert set(notes(run)) == set(OF_MODEL)


def test_a_checkpoint_of_the_same_step_and_nothing_better_than_the_base(run: Path) -> None:
    write_checkpoint(run, STEPS, "trained anew from step 3", best=0)
    told = (
        "made of the model of step 7; the run's last checkpoint is of another step 7 now; "
        f"make it again with lape-ds export {quote(str(run))} --checkpoint last, then AGAIN"
    )
    assert notes(run) == dict.fromkeys(OF_MODEL, told)


def test_other_neurons(run: Path) -> None:
    (run / "neurons.safetensors").write_text("others")
    told = "made of another neurons.safetensors than is there now; make it again with AGAIN"
    assert notes(run) == {"activations": told, "overlap": told}


def test_another_pack(run: Path) -> None:
    """Of a run that was never exported; once it is, the steps are compared."""
    shutil.rmtree(run / "model")
    (run / "pack.safetensors").write_text("a pack")
    write_analyses(run, load_recipe(run.parents[2] / "made.yaml"), pack_step=5)
    assert notes(run) == {}
    (run / "pack.safetensors").write_text("another")
    told = "made of another pack.safetensors than is there now; make it again with AGAIN"
    assert notes(run) == dict.fromkeys(OF_MODEL, told)
    write_checkpoint(run, STEPS, "last", best=None)
    (told,) = set(notes(run).values())
    assert f"make it again with lape-ds pack make {quote(str(run))}, then AGAIN" in told


def test_the_page_tells_it_above_the_numbers(tmp_path: Path) -> None:
    runs = []
    for method in ("subnetwork", "full"):
        recipe = load_recipe(write_recipe(tmp_path), [f"train.method={method}"])
        runs.append(write_run(recipe, gain=0.3, forgetting=0.1, trained=99, exported=True))
        write_analyses(runs[-1], recipe)
        for name in ("alignment", "activations"):  # their pictures take a second each
            (runs[-1] / "analysis" / f"{name}.json").unlink()
    write_directions(runs[0].parent / "analysis", ["subnetwork", "full"], STEPS)

    def page() -> tuple[str, list[str]]:
        path = write_report(find_subjects([str(run) for run in runs], []), tmp_path / "page.html")
        assert untraceable(path) == []
        read = read_page(path)
        classes = [attributes.get("class") for tag, attributes in read.elements if tag == "p"]
        return " ".join("".join(read.text).split()), [name for name in classes if name == "warning"]

    said, warnings = page()
    assert warnings == []
    assert "Not of the run as it is now" not in said
    train_on(runs[0])
    export(runs[0], OTHER)
    (runs[0] / "neurons.safetensors").write_text("others")
    said, warnings = page()
    assert len(warnings) == 4  # course, updates, the angles between two runs' updates, overlap
    again = f"lape-ds analyze {quote(str(runs[0]))} --only"
    for told in (
        f"subnetwork: made of step 7; the run is at step 8 now; make it again with {again} dynamics From beginning to end",
        f"subnetwork: made of the model of step 7; what is exported now is of step 3; make it again with {again} updates",
        f"make it again with lape-ds analyze {' '.join(quote(str(run)) for run in runs)} --only updates Cosine between",
        f"subnetwork: made of another neurons.safetensors than is there now; make it again with {again} overlap",
    ):
        assert told in said


def test_a_file_of_another_version_is_refused(run: Path) -> None:
    path = run / "analysis" / "overlap.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 1}))
    with pytest.raises(
        UserError, match=r"another version of lape-ds: make it again with `lape-ds analyze .* --only overlap`"
    ):
        write_report(find_subjects([str(run)], []))
