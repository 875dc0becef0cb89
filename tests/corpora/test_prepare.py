"""A recipe's corpora."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from lape_ds.corpora.prepare import prepare_corpora
from lape_ds.errors import UserError
from lape_ds.recipe import CLDRSource, CorpusSection, FilesSource, Recipe


def recipe_of(section: CorpusSection, folder: Path) -> Recipe:
    languages = {"target": "mt", "identify": ["mt", "is"]}
    sections = {"languages": languages, "model": {"path": "none"}, "corpus": section.model_dump()}
    return Recipe.model_validate({"name": "tiny", "output_dir": folder, **sections})


def test_corpora_of_a_recipe(tmp_path, tiny_tokenizer):
    (tmp_path / "mlt.txt").write_text("".join(f"linja numru {number}\n" for number in range(300)))
    section = CorpusSection(
        source=CLDRSource(kind="cldr", records=300),
        per_language={"mt": FilesSource(kind="files", path=str(tmp_path / "{iso639_3}.txt"))},
        heldout_share=0.1,
    )
    recipe = recipe_of(section, tmp_path / "run")
    budgets = {"mlt_Latn": 1000, "isl_Latn": "all"}
    corpora = prepare_corpora(recipe, tiny_tokenizer, list(budgets), train_tokens=cast(Any, budgets))
    assert list(corpora) == ["mlt_Latn", "isl_Latn"]
    # A line is 13 to 15 bytes, BOS and EOS: the budget is passed by less than one.
    assert 1000 <= corpora["mlt_Latn"].train.num_tokens < 1000 + 17
    assert corpora["isl_Latn"].train.num_documents + corpora["isl_Latn"].heldout.num_documents == 300
    assert (tmp_path / "run" / "corpus" / "isl_Latn").is_dir()


def test_corpus_without_heldout_text(tmp_path, tiny_tokenizer):
    (tmp_path / "mlt.txt").write_text("Jannar\n")  # its hash is not in the held-out part
    section = CorpusSection(
        source=FilesSource(kind="files", path=str(tmp_path / "{iso639_3}.txt")), heldout_share=1e-9
    )
    recipe = recipe_of(section, tmp_path / "run")
    settings: dict[str, Any] = {
        "train_tokens": {"mlt_Latn": 1000},
        "budget_key": "train.replay.share",
        "or_all": True,
    }
    corpora = prepare_corpora(recipe, tiny_tokenizer, ["mlt_Latn"], need_heldout=False, **settings)
    assert corpora["mlt_Latn"].train.num_documents == 1
    with pytest.raises(UserError, match="1 documents of mlt_Latn for training, 0 held out"):
        prepare_corpora(recipe, tiny_tokenizer, ["mlt_Latn"], **settings)
