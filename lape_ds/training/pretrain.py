"""The stage `lape-ds pretrain`: a tiny model of the recipe's own, where there is none to download.

Before identification. Tokenizer and random Llama come from model/create.py; the training is the ordinary loop with
`method: full` over all identified languages.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from lape_ds.corpora.reading import read_documents
from lape_ds.languages import find_language
from lape_ds.model.create import create_model, train_tokenizer
from lape_ds.recipe import Recipe, load_recipe, to_yaml
from lape_ds.runlog import write_text
from lape_ds.training.launch import launch_training


def pretrain(recipe_path: str, overrides: Sequence[str]) -> None:
    """Makes `model.path` if it is not there and the recipe says how (`model.create`); else says so and does nothing.

    Raises:
        UserError: The recipe or its text must be mended.
        SystemExit: With the training's exit code, if it failed.
    """
    recipe = load_recipe(recipe_path, overrides)
    target = Path(recipe.model.path)
    if recipe.model.create is None or (target / "config.json").exists():
        where = "is there" if recipe.model.create else "is used as it is (the recipe has no model.create)"
        print(f"model {recipe.model.path} {where}", file=sys.stderr)
        return
    from lape_ds.training.export import export_model  # loads torch, which the lines above do without

    random_model = recipe.output_dir / "pretrain" / "random-model"
    if not (random_model / "config.json").exists():
        create = recipe.model.create
        documents = _tokenizer_text(recipe, create.tokenizer_documents_per_language)
        tokenizer = train_tokenizer(documents, random_model.with_name("tokenizer"), create.vocab_size)
        create_model(create, tokenizer, random_model, recipe.seed)
    derived = pretraining_recipe(recipe, random_model)
    path = recipe.output_dir / "pretrain" / "recipe.yaml"
    write_text(path, to_yaml(derived))
    launch_training(str(path), [])
    export_model(derived.run_dir, checkpoint="last", folder=target)
    shutil.rmtree(derived.run_dir / "checkpoints")  # nothing goes on from here


def pretraining_recipe(recipe: Recipe, random_model: Path) -> Recipe:
    """The recipe of the pre-training: `model.create.pretrain` over all identified languages."""
    assert recipe.model.create is not None
    train = recipe.model.create.pretrain
    train = train.model_copy(
        update={"method": "full", "languages": train.languages or recipe.languages.identify}
    )
    model = recipe.model.model_copy(update={"path": str(random_model), "create": None})
    cache = recipe.corpus.cache_dir or recipe.output_dir / "corpus"
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-pretrain",
            "output_dir": recipe.output_dir / "pretrain",
            "model": model,
            "train": train,
            "corpus": recipe.corpus.model_copy(update={"cache_dir": cache}),
        }
    )


def _tokenizer_text(recipe: Recipe, per_language: int) -> Iterator[str]:
    """The same number of documents of every language, however often each is trained on: scripts must all be covered."""
    for code in recipe.languages.identify:
        source = recipe.corpus.per_language.get(code, recipe.corpus.source)
        documents = read_documents(
            source, find_language(code), on_bad_line=recipe.corpus.on_bad_line, position=None
        )
        yield from (text for text, _ in islice(documents, per_language))
