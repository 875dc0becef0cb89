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

from lape_ds.languages import find_language
from lape_ds.recipe import Recipe, check_frozen, freeze_recipe, load_recipe, to_yaml
from lape_ds.writing import write_text

# What decides the tokenizer and the random model; what decides their training is compared in its own folder.
_SECTIONS = (
    *("seed", "languages.identify", "corpus.source", "corpus.per_language"),
    *(f"model.create.{key}" for key in ("vocab_size", "tokenizer_documents_per_language", "llama")),
)


def pretrain(recipe_path: str, overrides: Sequence[str]) -> None:
    """Makes `model.path` if it is not there and the recipe says how (`model.create`); else says so and does nothing.

    Raises:
        UserError: The recipe or its text must be mended, or what is there was made by another recipe.
        SystemExit: With the training's exit code, if it failed or was stopped.
    """
    recipe = load_recipe(recipe_path, overrides)
    target = Path(recipe.model.path)
    if recipe.model.create is None:
        print(f"model {target} is used as it is (the recipe has no model.create)", file=sys.stderr)
        return
    folder = recipe.output_dir / "pretrain"
    random_model = folder / "random-model"
    derived = pretraining_recipe(recipe, random_model)
    check_frozen(recipe, folder, sections=_SECTIONS)
    if (target / "config.json").exists():
        check_frozen(derived, derived.run_dir, sections=("train",))
        print(f"model {target} is there", file=sys.stderr)
        return
    # These load torch and transformers, which the lines above do without.
    from lape_ds.distributed.launch import launch_training
    from lape_ds.model.create import create_model, train_tokenizer
    from lape_ds.training.export import export_model

    if not (folder / "recipe.yaml").exists():  # frozen when the random model is whole
        create = recipe.model.create
        documents = _tokenizer_text(recipe, create.tokenizer_documents_per_language)
        tokenizer = train_tokenizer(documents, folder / "tokenizer", create.vocab_size)
        create_model(create, tokenizer, random_model, recipe.seed)
        freeze_recipe(recipe, folder, sections=_SECTIONS)
    path = folder / "training.yaml"
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
    cache = recipe.corpus_dir
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
    from lape_ds.corpora.reading import read_documents

    for code in recipe.languages.identify:
        source = recipe.corpus.per_language.get(code, recipe.corpus.source)
        documents = read_documents(
            source, find_language(code), on_bad_line=recipe.corpus.on_bad_line, position=None
        )
        yield from (text for text, _ in islice(documents, per_language))
