"""What of a recipe and of its files may be published: nothing that tells of the user's machine.

Before the atlas's folder is written. Environment variables may hold tokens, and paths hold names of people and clusters: an
atlas has neither.
"""

from __future__ import annotations

from pathlib import Path

from lape_ds.model.folder import is_hub_id
from lape_ds.recipe import FilesSource, HeldOutSection, HubSource, Recipe, Source, TrainSection


def is_local(recipe: Recipe) -> bool:
    """Whether the model is a folder here and not one of the hub."""
    return recipe.model.create is not None or not is_hub_id(recipe.model.path)


def published_model_id(recipe: Recipe) -> str:
    """What an atlas calls its model: its id on the hub, or its folder's name."""
    return Path(recipe.model.path).name if is_local(recipe) else recipe.model.path


def published_recipe(recipe: Recipe) -> Recipe:
    """What the results depend on: no environment, no launch, of training only how held-out text is measured; names for paths."""
    model, corpus, heldout = recipe.model, recipe.corpus, recipe.train.heldout
    create = model.create
    if create is not None:
        pretrain = create.pretrain.model_copy(
            update={"neurons": None, "wandb": None}
        )  # neither has a use there
        create = create.model_copy(update={"pretrain": pretrain})
    measured = HeldOutSection(
        tokens_per_language=heldout.tokens_per_language, tokens_per_batch=heldout.tokens_per_batch
    )
    per_language = {code: _published_source(source) for code, source in corpus.per_language.items()}
    return Recipe(
        name=recipe.name,
        seed=recipe.seed,
        output_dir=Path(recipe.output_dir.name or recipe.name),
        languages=recipe.languages,
        model=model.model_copy(update={"path": published_model_id(recipe), "create": create}),
        corpus=corpus.model_copy(
            update={
                "cache_dir": None,
                "source": _published_source(corpus.source),
                "per_language": per_language,
            }
        ),
        identify=recipe.identify,
        train=TrainSection(block_length=recipe.train.block_length, heldout=measured),
        atlas=recipe.atlas,
    )


def _published_source(source: Source) -> Source:
    if isinstance(source, FilesSource):
        return source.model_copy(update={"path": Path(source.path).name})
    if isinstance(source, HubSource) and not is_hub_id(source.dataset):
        return source.model_copy(update={"dataset": Path(source.dataset).name})
    return source
