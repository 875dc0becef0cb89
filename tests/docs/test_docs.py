"""Every command of docs/ is run, in order, on a tiny model: one that does not exist, or fails, fails here."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from lape_ds.corpora.cldr import sample_records
from lape_ds.languages import find_language
from lape_ds.model.create import create_model
from lape_ds.model.loading import load_tokenizer
from lape_ds.recipe import CreateSection
from tests.docs.blocks import commands
from tests.docs.walking import Walk
from tests.processes import REPO

DOCS = REPO / "docs"
PAGES = ("your-language", "packs", "report", "cluster")  # the later ones look at what the first has trained
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,  # a question of the quickstart's suite fits
}
RECIPE = """
name: {name}
output_dir: runs/{name}
languages: {{target: mt, identify: [mt, en, ka]}}
model: {{path: BASE, dtype: float32}}
corpus:
  source: {{kind: cldr, records: 300}}
  per_language: {{mlt: {{kind: files, path: text/mlt}}}}
  heldout_share: 0.1
identify:
  tokens_per_language: 2000
  context_length: 64
  batch_size: 8
  top_rate: 0.5
  filter_rate: 0.5
  activation_bar_ratio: 0.5
train:
  block_length: 32
  micro_batch_size: 8
  max_steps: 4
  optimizer: {{learning_rate: 1e-2}}
  heldout: {{every_steps: 2, languages: [en], tokens_per_language: 300}}
  checkpoint_every_steps: 2
launch: {{num_ranks: 1}}
eval: {{limit: 4}}
sweep:
  num_ranks: 1
  seeds: [0]
  set: {{train.max_steps: 2}}
  variants: [{{method: subnetwork, learning_rates: [3e-3, 1e-2]}}, {{method: full, learning_rates: [1e-4]}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> Path:
    """What the docs name before they make it: recipes, the base, text of one's own."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "recipes").mkdir()
    for name in ("qwen3-1.7b", "mistral-nemo-12b"):
        (folder / "recipes" / f"{name}.yaml").write_text(RECIPE.format(name=name), encoding="utf-8")
    tokenizer = load_tokenizer(tiny_recipe.parent / "base")
    section = {"vocab_size": len(tokenizer), "llama": LLAMA, "pretrain": {"method": "full"}}
    create_model(CreateSection.model_validate(section), tokenizer, folder / "BASE", seed=0)
    (folder / "TRAINED").symlink_to("runs/qwen3-1.7b/train/subnetwork/model")
    (folder / "runs" / "welsh" / "train").mkdir(parents=True)
    (folder / "runs" / "welsh" / "train" / "subnetwork").symlink_to("../../qwen3-1.7b/train/random-seed0")
    (folder / "text" / "mlt").mkdir(parents=True)
    records = islice(sample_records(find_language("mt"), count=300, seed=0), 300)
    lines = [" ".join(record.text.split()) for record in records]
    (folder / "text" / "mlt" / "own.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def follow(folder: Path) -> Callable[[str], None]:
    """Runs a page, and before it those that it builds on; each once."""
    followed: list[str] = []

    def until(page: str) -> None:
        for name in PAGES[: PAGES.index(page) + 1]:
            if name not in followed:
                followed.append(name)
                with pytest.MonkeyPatch.context() as patch:
                    walk = Walk(folder, patch)
                    for command in commands(DOCS / f"{name}.md"):
                        try:
                            walk.run(command)
                        except AssertionError as error:
                            raise AssertionError(f"{command.place}: {command.text}: {error}") from error

    return until


def test_every_page_is_followed() -> None:
    assert sorted(PAGES) == sorted(path.stem for path in DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_runs(page: str, follow: Callable[[str], None]) -> None:
    follow(page)
