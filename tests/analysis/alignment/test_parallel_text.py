"""Where parallel sentences come from: CLDR, FLORES+ in a local copy, the user's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lape_ds.analysis.alignment.numbers import ParallelRequest
from lape_ds.analysis.alignment.parallel_text import parallel_text
from lape_ds.corpora.cldr import sample_records, write
from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.recipe import Recipe, load_recipe

OWN, OTHERS = ["mlt_Latn"], ["eng_Latn", "kat_Geor"]


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(str(tiny_recipe), [])


def test_records_say_the_same_and_no_training_has_them(recipe: Recipe) -> None:
    found = parallel_text(recipe, OWN, OTHERS, ParallelRequest(num_sentences=40))
    trained = {record.text for record in sample_records(find_language("mt"), count=300, seed=0)}
    assert not trained & set(found.texts["mlt_Latn"])
    records = {
        record.text: record for record in sample_records(find_language("mt"), count=40, seed=0, first=10**9)
    }
    for own, other in zip(found.texts["mlt_Latn"], found.texts["kat_Geor"], strict=True):
        record = records[own]
        assert other == write(find_language("ka"), record.kind, record.content)
    assert 30 < found.num_sentences <= 40
    assert all(len(set(texts)) == found.num_sentences for texts in found.texts.values())


def test_a_language_without_text_is_left_out_but_for_a_trained_one(recipe: Recipe) -> None:
    found = parallel_text(recipe, OWN, ["eng_Latn", "ace_Latn"], ParallelRequest(num_sentences=5))
    assert list(found.texts) == ["mlt_Latn", "eng_Latn"]
    assert "CLDR has too little" in found.left_out["ace_Latn"]
    with pytest.raises(UserError, match=r"ace_Latn, which was trained: .*CLDR has too little"):
        parallel_text(recipe, ["ace_Latn"], OTHERS, ParallelRequest())
    with pytest.raises(UserError, match=r"no language to compare mlt_Latn with: .*CLDR has too little"):
        parallel_text(recipe, OWN, ["ace_Latn"], ParallelRequest())


def test_other_recipes_take_flores_dev_by_id(recipe: Recipe, tmp_path: Path) -> None:
    """Rows stand in another order in each file; the English sentence 3 stands twice, so neither is taken."""
    (tmp_path / "dev").mkdir()
    for code, order in (("mlt_Latn", [4, 2, 0, 1, 3]), ("eng_Latn", [0, 1, 2, 3, 4])):
        rows = [
            {"id": one, "text": f"{code} {1 if (code, one) == ('eng_Latn', 3) else one}"} for one in order
        ]
        (tmp_path / "dev" / f"{code}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"corpus": recipe.corpus.model_copy(update={"source": _files()})}
    datasets = {"openlanguagedata/flores_plus": str(tmp_path)}
    changed = recipe.model_copy(
        update=source | {"eval": recipe.eval.model_copy(update={"datasets": datasets})}
    )
    found = parallel_text(changed, OWN, ["eng_Latn"], ParallelRequest())
    assert found.source == "FLORES+ dev"
    assert found.texts["mlt_Latn"] == tuple(f"mlt_Latn {one}" for one in (0, 1, 2, 4))
    assert found.texts["eng_Latn"] == tuple(f"eng_Latn {one}" for one in (0, 1, 2, 4))
    half = parallel_text(changed, OWN, ["eng_Latn"], ParallelRequest(num_sentences=2))
    assert half.texts["eng_Latn"] == ("eng_Latn 0", "eng_Latn 2")  # evenly from the whole


def _files() -> object:
    return load_recipe("recipes/llama-3.1-8b.yaml", []).corpus.source


def test_files_of_ones_own(recipe: Recipe, tmp_path: Path) -> None:
    """Lines meet by their number; one that is blank in some language is nowhere taken."""
    (tmp_path / "mt.txt").write_text("wieħed\ntnejn\n\nerbgħa\n", encoding="utf-8")
    (tmp_path / "en.txt").write_text("one\ntwo\nthree\nfour\n", encoding="utf-8")
    path = f"{tmp_path}/{{iso639_1}}.txt"
    found = parallel_text(recipe, OWN, OTHERS, ParallelRequest(path))
    assert found.texts == {
        "mlt_Latn": ("wieħed", "tnejn", "erbgħa"),
        "eng_Latn": ("one", "two", "four"),
    }
    assert "no such file" in found.left_out["kat_Geor"]
    with pytest.raises(UserError, match="the same file for every language"):
        parallel_text(recipe, OWN, OTHERS, ParallelRequest(f"{tmp_path}/mt.txt"))
    (tmp_path / "en.txt").write_text("one\n", encoding="utf-8")
    with pytest.raises(UserError, match="have 1 sentences in common"):
        parallel_text(recipe, OWN, OTHERS, ParallelRequest(path))
