"""The matrix file, and the ordinary recipes that it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from lape_ds.errors import UserError
from lape_ds.recipe import load_matrix, load_recipe
from tests.matrix.matrices import CODES, MATRIX, hand_matrix, matrix_file

PAPER = Path(__file__).parents[2] / "recipes" / "paper"


def test_a_matrix_is_recipes(tmp_path: Path) -> None:
    matrix = hand_matrix(tmp_path, more="set: {train.max_steps: 9, model.dtype: float32}\neval: {limit: 3}\n")
    matrix.write_recipes()
    out = tmp_path / "out" / "hand"
    own = load_recipe(out / "recipe.yaml")
    assert (own.output_dir, own.corpus.cache_dir, own.train.max_steps) == (out, out / "corpus", 9)
    assert own.languages.target == "mlt_Latn"
    assert own.sweep == matrix.section.sweep
    neurons = out / "identify" / "neurons.safetensors"
    neurons.parent.mkdir()
    neurons.touch()  # which a recipe that names them must find
    for code, language in zip(CODES, matrix.languages, strict=True):
        written = load_recipe(language.recipe_file)
        assert written == language.recipe
        assert (written.languages.target, written.output_dir) == (code, out / code)
        assert (written.corpus.cache_dir, written.train.neurons) == (out / "corpus", neurons)
        assert (written.eval.limit, written.model.dtype) == (3, "float32")
        assert {run.recipe.train.heldout.languages.count(code) for run in language.runs} == {0}


def test_methods_have_seeds_of_their_own(tmp_path: Path) -> None:
    runs = hand_matrix(tmp_path).languages[0].runs
    assert [(run.variant, run.learning_rate, run.seed) for run in runs] == [
        ("subnetwork", 1e-4, 0),
        ("subnetwork", 1e-3, 0),
        ("random", 1e-4, 0),
        ("random", 1e-3, 0),
        ("full", 1e-5, 0),
        ("full", 1e-4, 0),
        ("random", 1e-4, 1),
        ("random", 1e-3, 1),
    ]
    assert {run.recipe.train.random_seed for run in runs if run.variant == "random"} == {0, 1}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("sett: {}", r"sett: unknown key; did you mean set\? .*matrix.yaml:12\)"),
        ("set: {train.max_step: 1}", r"train\.max_step: unknown key; did you mean train\.max_steps"),
        ("set: {sweep.seeds: [1]}", "sweep.seeds cannot be set here: sweep is given by the matrix"),
        ("set: {languages.target: mt}", "languages.target is given by the matrix"),
        ("eval: {suit: x}", "did you mean eval.suite"),
    ],
)
def test_refusals(tmp_path: Path, more: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        hand_matrix(tmp_path, more=more + "\n")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[mt, cy, ka]", "[mt, ja]", "languages: jpn_Jpan has no neurons in .*hand.yaml"),
        ("[mt, cy, ka]", "[]", "at least 1 item"),
        ("method: full,", "method: fulll,", "method must be one of"),
        (
            '"{folder}/hand.yaml"',
            '"{folder}/hand.yaml", "{folder}/../{name}/hand.yaml"',
            "two are named hand",
        ),
    ],
)
def test_refusals_of_what_it_has(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = matrix_file(tmp_path)
    text = MATRIX.replace(old, new.replace("{name}", tmp_path.name)).format(folder=tmp_path)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_matrix(path)


@pytest.mark.parametrize("path", sorted(PAPER.glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_matrices_are_whole(path: Path) -> None:
    """The paper's methods (arXiv 2510.13580), random neurons three times, each at three rates or more."""
    matrix = load_matrix(path)
    sweep = matrix.section.sweep
    assert [variant.method for variant in sweep.variants] == [
        "subnetwork",
        "random",
        "full",
        "ffn",
        "lora",
        "ia3",
    ]
    assert {variant.method: len(sweep.seeds_of(variant)) for variant in sweep.variants}["random"] == 3
    assert all(len(variant.learning_rates) >= 3 for variant in sweep.variants)
    assert sweep.keep_checkpoints == "tuned"
    folders = {language.folder for language in matrix.languages}
    assert len(folders) == len(matrix.models) * len(matrix.section.languages)


def test_tuned_runs_keep_what_is_measured_of_them(tmp_path: Path) -> None:
    """Without checkpoints nothing is exported, and finished runs are not trained again."""
    path = matrix_file(tmp_path, more="eval: {limit: 3}\n")
    assert "keep_checkpoints" not in path.read_text(encoding="utf-8")
    assert load_matrix(path).languages[0].runs[0].recipe.sweep is None
    assert load_matrix(path).section.sweep.keep_checkpoints == "tuned"
    assert load_matrix(path, ["sweep.keep_checkpoints=true"]).section.sweep.keep_checkpoints is True
    with pytest.raises(UserError, match="leaves nothing for eval to measure"):
        load_matrix(path, ["sweep.keep_checkpoints=false"])
