"""Settings written into a recipe's own text: the rest stays to the byte, and what cannot be edited is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lape_ds.errors import UserError
from lape_ds.recipe import load_recipe, rewrite_recipe
from lape_ds.recipe.rewriting import edited

HEAD = """# A recipe of mine.
name: mine   # kept
output_dir: out
languages: {target: mt, identify: [mt, en]}
model: {path: base}
corpus: {source: {kind: cldr}}
"""
TRAIN = """train:
  # two blocks fit
  micro_batch_size: 2 # per GPU
  gradient_checkpointing: true
"""
SETTINGS = {
    "train.micro_batch_size": 4,
    "train.gradient_accumulation_steps": 8,
    "train.gradient_checkpointing": "none",
    "deepspeed.zero_stage": 3,
    "deepspeed.offload_parameters": "cpu",
    "launch.num_ranks": 8,
}


def rewritten(text: str) -> str:
    return edited(text, SETTINGS, origin="mine.yaml")


def test_values_change_where_they_stand_and_new_keys_come_first() -> None:
    assert rewritten(HEAD + TRAIN + "deepspeed: {zero_stage: 2} # flow\n\n# the end\n") == (
        HEAD
        + """train:
  gradient_accumulation_steps: 8
  # two blocks fit
  micro_batch_size: 4 # per GPU
  gradient_checkpointing: none
deepspeed: { offload_parameters: cpu, zero_stage: 3} # flow

# the end

launch:
  num_ranks: 8
"""
    )


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "train:\ndeepspeed: {}\nlaunch:\n",
        "train: ~ # nothing yet\ndeepspeed: null\nlaunch: {num_ranks: }\n",
        "launch:\n    num_ranks:   2\ndeepspeed:\n    zero_stage: 0\n    config:\n        zero_optimization: {}",
    ],
)
def test_whatever_is_there_says_the_settings_afterwards(rest: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD + rest, encoding="utf-8")
    difference = rewrite_recipe(path, SETTINGS)
    recipe = load_recipe(path)
    assert (recipe.train.micro_batch_size, recipe.train.gradient_accumulation_steps) == (4, 8)
    assert (recipe.deepspeed.zero_stage, recipe.deepspeed.offload_parameters) == (3, "cpu")
    assert recipe.launch.num_ranks == 8
    assert path.read_text(encoding="utf-8").startswith(HEAD)
    assert "zero_stage: 3" in difference
    assert rewrite_recipe(path, SETTINGS) == "", "a second time there is nothing to change"


def test_every_shipped_recipe_can_be_rewritten() -> None:
    folder = Path(__file__).parents[2] / "recipes"
    for path in sorted(folder.glob("*.yaml")):
        before = path.read_text(encoding="utf-8")
        after = rewritten(before)
        kept = [line for line in before.splitlines() if line.lstrip().startswith("#")]
        assert [line for line in after.splitlines() if line.lstrip().startswith("#")] == kept


def test_an_anchor_that_is_used_elsewhere_is_not_edited() -> None:
    text = HEAD + "train: &t {micro_batch_size: 2}\ndeepspeed: {config: {}}\n"
    shared = text.replace("corpus: {source: {kind: cldr}}", "corpus: {source: {kind: cldr, seed: &s 3}}")
    shared = shared.replace("micro_batch_size: 2", "micro_batch_size: *s")
    with pytest.raises(
        UserError, match=r"cannot be edited key by key; set by hand train\.micro_batch_size=4"
    ):
        rewritten(shared)


def test_files_that_are_not_the_users_are_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(HEAD, encoding="utf-8")
    (run / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="is the record of a run"):
        rewrite_recipe(run, SETTINGS)
    assert (run / "recipe.yaml").read_text(encoding="utf-8") == HEAD


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to every file")
def test_a_read_only_recipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(HEAD, encoding="utf-8")
    path.chmod(0o444)
    with pytest.raises(UserError, match=r"cannot be written: .*launch\.num_ranks=8"):
        rewrite_recipe(path, SETTINGS)
