"""What can be told of this room's folders with nothing heavy: on which keys of a recipe they depend, whether one holds counts.

First of the room: a recipe that does not fit a folder is refused before ranks are started.
"""

from __future__ import annotations

from pathlib import Path

from lape_ds.recipe import Recipe

# What the counts depend on. The languages and the knobs of the selection may change between runs: the neurons are selected
# anew from the counts that are there.
_COUNT_SECTIONS = (
    "model",
    "corpus",
    *(f"identify.{key}" for key in ("context_length", "tokens_per_language", "reset_positions", "dtype")),
)

# What an ablation's folder is of. Its neurons and languages may change between runs: rows of other neurons are measured anew.
ABLATION_SECTIONS = ("model", "corpus", "train.block_length", "train.heldout.tokens_per_language")


def count_sections(recipe: Recipe) -> tuple[str, ...]:
    """Keys of the recipe on which the content of its folder of counts depends: of a part, also how the text is cut into units."""
    return _COUNT_SECTIONS if recipe.identify.part is None else (*_COUNT_SECTIONS, "identify.shard_tokens")


def holds_counts(folder: Path) -> bool:
    """Whether anything is counted in a folder, of whatever recipe."""
    return any(any(folder.glob(pattern)) for pattern in ("counts/*.safetensors", "units/*/*.safetensors"))
