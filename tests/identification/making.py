"""A tiny model and a recipe that identifies three languages in it, for the tests here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from lape_ds.corpora.cldr import sample_records
from lape_ds.languages import find_language
from lape_ds.model.create import create_model, train_tokenizer
from lape_ds.recipe import CreateSection, Recipe, to_yaml

CODES = ["mlt_Latn", "kat_Geor", "eng_Latn"]
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}


def make_model(
    folder: Path,
    *,
    codes: Sequence[str] = CODES,
    llama: Mapping[str, Any] = LLAMA,
    num_records: int = 100,
) -> Path:
    texts = [
        record.text
        for code in codes
        for record in sample_records(find_language(code), count=num_records, seed=1)
    ]
    tokenizer = train_tokenizer(texts, folder / "tokenizer", 500)
    create = CreateSection.model_validate({"llama": llama, "pretrain": {"method": "full"}})
    create_model(create, tokenizer, folder / "model", seed=0)
    return folder / "model"


def make_recipe(tmp_path: Path, model_folder: Path, **changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "name": "tiny",
        "output_dir": str(tmp_path / "run"),
        "languages": {"target": CODES[0], "identify": CODES},
        "model": {"path": str(model_folder), "dtype": "float32"},
        "corpus": {"source": {"kind": "cldr", "records": 150}, "heldout_share": 0.1},
        "identify": {
            "tokens_per_language": 4000,
            "batch_size": 4,
            "top_rate": 0.25,
            "filter_rate": 0.75,
            "activation_bar_ratio": 0.75,
        },
    }
    for section, values in changes.items():
        content[section] = content[section] | values
    return Recipe.model_validate(content)


def write_recipe(recipe: Recipe, folder: Path) -> Path:
    """As a file, for commands."""
    path = folder / "recipe.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_yaml(recipe), encoding="utf-8")
    return path


def counts_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What the files of all languages say and hold; safetensors writes what they say in any order."""
    found: dict[str, dict[str, Any]] = {}
    for path in (recipe.counting_dir / "counts").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118 (not a dict)
            found[path.stem] = {**tensors, "metadata": file.metadata()}
    return found
