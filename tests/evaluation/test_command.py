"""What a user may name on the command line, and what comes out of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lape_ds.errors import UserError
from lape_ds.evaluation.command import evaluate_command

RECIPE = """\
name: tiny
output_dir: {output}
languages: {{target: mlt, identify: [eng, mlt, kat, deu]}}
model: {{path: {model}, dtype: float32}}
corpus: {{source: {{kind: cldr, records: 10}}}}
eval: {{limit: 2}}
"""


@pytest.fixture
def recipe(tmp_path: Path, model_folder: Path, other_folder: Path) -> Path:
    """A recipe with two exported runs and one that is not exported yet."""
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(output=tmp_path / "runs", model=model_folder), encoding="utf-8")
    for name in ("random-seed0", "subnetwork", "unfinished"):
        run = tmp_path / "runs" / "train" / name
        run.mkdir(parents=True)
        shutil.copy(path, run / "recipe.yaml")
        if name != "unfinished":
            shutil.copytree(other_folder, run / "model")
    return path


def test_a_recipe_means_its_base_and_its_exported_runs(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    results = evaluate_command([str(recipe)])
    assert list(results) == ["base", "subnetwork", "random-seed0"]  # the control stands last
    # The target and two more of those identified.
    assert {result.language for result in results["base"].values()} == {"mlt_Latn", "eng_Latn", "kat_Geor"}
    assert all(result.num_documents == 2 for result in results["base"].values())
    assert all(result.settings["dtype"] == "float32" for result in results["base"].values())
    shown = capsys.readouterr().out
    for text in ("quickstart suite", "base", "subnetwork", "random-seed0", "translation", "↓", "↑", "0.250"):
        assert text in shown
    written = tmp_path / "runs" / "eval" / "subnetwork"
    assert (written / "cldr_cloze_kat_Geor.json").is_file()
    assert (written / "samples" / "cldr_cloze_kat_Geor.jsonl").is_file()


def test_a_run_folder_means_its_base_and_itself(recipe: Path, tmp_path: Path):
    run = tmp_path / "runs" / "train" / "subnetwork"
    results = evaluate_command([str(run)], languages=["mlt"], output_dir=tmp_path / "out", limit=1)
    assert list(results) == ["base", "subnetwork"]
    assert (tmp_path / "out" / "base" / "cldr_topic_mlt_Latn.json").is_file()


def test_the_same_model_is_measured_once_and_labels_differ(recipe: Path, tmp_path: Path, model_folder: Path):
    runs = tmp_path / "runs" / "train"
    again = tmp_path / "copy" / "tiny"
    shutil.copytree(model_folder, again)
    results = evaluate_command(
        [str(runs / "subnetwork"), str(runs / "random-seed0"), str(model_folder), str(again)],
        languages=["mlt"],
        limit=1,
    )
    assert list(results) == ["base", "subnetwork", "random-seed0", "tiny", "copy-tiny"]


def test_what_cannot_be_measured_is_refused(recipe: Path, tmp_path: Path, model_folder: Path):
    with pytest.raises(UserError, match=r"unfinished has no exported model: run `lape-ds export"):
        evaluate_command([str(tmp_path / "runs" / "train" / "unfinished")])
    with pytest.raises(UserError, match=r"--languages .* and --output"):
        evaluate_command([str(model_folder)])
    with pytest.raises(UserError, match="name at least one"):
        evaluate_command([])
    with pytest.raises(UserError, match=r"no recipe .*nothing\.yaml"):
        evaluate_command(["nothing.yaml"])
    with pytest.raises(UserError, match=r"no config\.json"):
        evaluate_command([str(tmp_path)], languages=["mlt"], output_dir=tmp_path / "out")
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        evaluate_command([str(recipe)], suite="quikstart")
    assert not (tmp_path / "out").exists()


def test_overrides_reach_the_recipe(recipe: Path):
    results = evaluate_command([str(recipe)], overrides=["eval.limit=1", "languages.target=kat"])
    assert {result.language for result in results["base"].values()} == {"kat_Geor", "eng_Latn", "mlt_Latn"}
    assert all(result.num_documents == 1 for result in results["base"].values())
