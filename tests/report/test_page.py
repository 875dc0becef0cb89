"""The page: every number on it equals its file; it stands alone; what is missing is named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from shlex import quote

import pytest

from lape_ds.errors import UserError
from lape_ds.recipe import load_recipe
from lape_ds.report.page import write_report
from lape_ds.report.subjects import find_subjects
from tests.report.made import STEPS, write_everything, write_matrix, write_recipe, write_run
from tests.report.tracing import PageReader, read_page, untraceable


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_everything(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_matrix(tmp_path_factory.mktemp("matrix"))


@pytest.fixture(scope="module")
def pages(recipe: Path, matrix: Path) -> dict[str, Path]:
    runs = load_recipe(recipe).output_dir / "train"
    named = {
        "run": [str(runs / "subnetwork")],
        "runs": [str(runs / "subnetwork"), str(runs / "full")],
        "sweep runs": sorted(str(path.parent) for path in (runs / "sweep").rglob("run.json")),
        "recipe": [str(recipe)],
        "matrix": [str(matrix)],
        "all": [str(recipe), str(matrix)],
    }
    return {
        name: write_report(find_subjects(targets, []), recipe.parent / "pages" / f"{name}.html")
        for name, targets in named.items()
    }


KINDS = ["run", "runs", "sweep runs", "recipe", "matrix", "all"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_equals_its_file(pages: dict[str, Path], kind: str) -> None:
    assert untraceable(pages[kind]) == []
    assert len(read_page(pages[kind]).sourced) > 30


def test_what_a_file_no_longer_says_is_found(tmp_path: Path) -> None:
    folder = write_run(
        load_recipe(write_recipe(tmp_path)), gain=0.3, forgetting=0.1, trained=99, exported=True
    )
    page = write_report(find_subjects([str(folder)], []))
    assert untraceable(page) == []
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"trained_parameters": 98}))
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines.replace('"mlt_Latn": 1.9,', '"mlt_Latn": 1.9001,'))
    wrong = "\n".join(untraceable(page))
    assert "run.json#/trained_parameters is 98" in wrong
    assert "metrics.jsonl#1/heldout_bits_per_byte/mlt_Latn is 1.9001" in wrong
    text = page.read_text(encoding="utf-8")
    page.write_text(
        text.replace(">Held-out ", ">Held-out 17 ").replace("−0.300<", "−0.310<"), encoding="utf-8"
    )
    wrong = "\n".join(untraceable(page))
    assert "without a source: Held-out 17" in wrong
    assert "shows −0.310" in wrong


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_stands_alone_and_is_accessible(pages: dict[str, Path], kind: str) -> None:
    page = read_page(pages[kind])
    text = pages[kind].read_text(encoding="utf-8")
    assert not re.search(r"https?://(?!www\.w3\.org/)|@import|<script|javascript:", text)
    assert {tag for tag, _ in page.elements} & {"script", "iframe", "img", "object", "base", "form"} == set()
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        for name in attributes.get("aria-labelledby", "").split():
            assert name in ids
        href = attributes.get("href", "")
        if tag == "a" and not href.startswith("#"):
            assert (pages[kind].parent / href.replace("%20", " ")).exists()
        elif href.startswith("#"):
            assert href[1:] in ids
        assert not any(key.startswith("on") for key in attributes)
    _check_tables(page)
    for tag, attributes in page.elements:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-labelledby"]


def _check_tables(page: PageReader) -> None:
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption") > 0
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    assert tags.count("h1") == 1


def test_one_run_says_what_it_gained_and_forgot(pages: dict[str, Path]) -> None:
    said = " ".join("".join(read_page(pages["run"]).text).split())
    assert "Held-out Maltese fell from 1.900 to 1.590 bits per byte (−0.310, −16.3 %)." in said
    assert re.search(r"The mean of 3 other languages rose from 1\.100 to 1\.11\d \(\+0\.01\d, ", said)
    assert "Tasks measured on the same documents as the base: 2; better: 1, worse: 0" in said
    assert "9,437,184 of 1,235,814,400" in said
    assert "from the hub" not in said


def test_runs_are_compared_and_same_facts_said_once(pages: dict[str, Path]) -> None:
    page = read_page(pages["runs"])
    said = " ".join("".join(page.text).split())
    assert "The largest gain: full, Maltese −0.440 bits per byte." in said
    assert "The least forgotten: subnetwork" in said
    assert "ranks methods arbitrarily" in said
    quoted = [
        one.text for one in page.sourced if one.attributes["data-source"].endswith("/recipe/model/path")
    ]
    assert quoted == ["some/base-1B"]


def test_the_matrix_is_told_in_sentences_and_grids(pages: dict[str, Path]) -> None:
    said = " ".join("".join(read_page(pages["matrix"]).text).split())
    assert "Cells (a model, a language, a method): 9; finished: 8" in said
    assert re.search(r"mean over languages\): subnetwork \+0\.350 ±0\.\d+; the highest: full \+0\.450", said)
    assert "Provisional" in said
    assert " --retry" in said


def test_a_bare_run_names_the_commands_for_what_is_missing(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path), ["train.heldout.languages=[en]"])
    folder = write_run(recipe, gain=0.1, forgetting=0.1, trained=5, exported=False)
    said = unescape(write_report(find_subjects([str(folder)], [])).read_text(encoding="utf-8"))
    for command in (
        f"lape-ds eval {quote(str(folder))}<",
        f"lape-ds analyze {quote(str(folder))}<",
        "lape-ds identify",
        "lape-ds neurons ablate",
    ):
        assert command in said


def test_a_run_without_steps_one_underway_and_one_that_diverged(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path))
    folder = write_run(recipe, gain=0.1, forgetting=0.1, trained=5, exported=False)
    metrics = folder / "metrics.jsonl"
    whole = metrics.read_text()
    metrics.write_text("".join(whole.splitlines(keepends=True)[:3]) + '{"step": 3, "lo')  # killed in a line
    page = write_report(find_subjects([str(folder)], []))
    assert untraceable(page) == []
    said = " ".join("".join(read_page(page).text).split())
    assert "Nothing was measured before and after this training" in said
    assert f"This training is not finished: 2 of {STEPS} steps are done." in said
    assert f"lape-ds train {quote(str(folder))}" in said

    metrics.write_text(
        whole.splitlines(keepends=True)[0] + json.dumps({"step": 0, "diverged": "loss is nan at 3"}) + "\n"
    )
    page = write_report(find_subjects([str(folder)], []))
    assert untraceable(page) == []
    assert "The training diverged: loss is nan at 3." in " ".join("".join(read_page(page).text).split())

    metrics.unlink()
    assert untraceable(write_report(find_subjects([str(folder)], []))) == []


def test_names_with_signs_of_their_own_are_found(tmp_path: Path) -> None:
    place = tmp_path / "50 % {off} #1 & <b>"
    place.mkdir()
    folder = write_run(load_recipe(write_recipe(place)), gain=0.1, forgetting=0.1, trained=5, exported=True)
    page = write_report(find_subjects([str(folder)], []), tmp_path / "page.html")
    assert untraceable(page) == []
    assert "<b>" not in page.read_text(encoding="utf-8")


def test_default_place(recipe: Path, matrix: Path) -> None:
    folder = load_recipe(recipe).output_dir
    runs = [str(folder / "train" / name) for name in ("subnetwork", "full")]
    assert find_subjects(runs[:1], []).folder == folder / "train" / "subnetwork"
    assert find_subjects(runs, []).folder == folder / "train"
    assert find_subjects([str(recipe)], []).folder == folder
    assert find_subjects([str(folder)], []).folder == folder
    assert find_subjects([str(matrix)], []).folder == matrix
    assert find_subjects([str(matrix.parent / "matrix.yaml")], []).folder == matrix


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to tell of"):
        find_subjects([], [])
    with pytest.raises(UserError, match="holds neither a run"):
        find_subjects([str(tmp_path)], [])
    folder = write_run(
        load_recipe(write_recipe(tmp_path)), gain=0.1, forgetting=0.1, trained=5, exported=True
    )
    (folder / "model" / "lape_ds_export.json").write_text("{")
    with pytest.raises(UserError, match=r"lape_ds_export\.json is damaged"):
        write_report(find_subjects([str(folder)], []))
    (folder / "run.json").write_text('{"stage": "ablate"}')
    with pytest.raises(UserError, match="is not the folder of a training"):
        write_report(find_subjects([str(folder)], []))


def test_the_command_needs_no_torch(recipe: Path, tmp_path: Path) -> None:
    folder = load_recipe(recipe).output_dir / "train" / "full"
    code = (
        "import sys\nfrom lape_ds.cli import main\n"
        f"sys.argv = ['lape-ds', 'report', {str(folder)!r}, '--output', {str(tmp_path / 'a.html')!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'a.html'}\n"
