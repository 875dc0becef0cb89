"""What an identification is made of, and that all its ranks have the same: checked before a token is counted.

Between the recipe and the counting.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from lape_ds.corpora.packing import PackedCorpus
from lape_ds.corpora.prepare import identified_corpora
from lape_ds.distributed import ranks
from lape_ds.distributed.agreement import SAME_SOFTWARE, check_same, check_same_recipe, software
from lape_ds.errors import UserError
from lape_ds.identification.files import CountFiles
from lape_ds.identification.sections import count_sections
from lape_ds.identification.units import Text
from lape_ds.model.loading import fingerprint, load_skeleton, load_tokenizer, recipe_model
from lape_ds.model.shape import ModelShape, model_shape
from lape_ds.neurons.counting import check_can_reset_positions
from lape_ds.neurons.counts import CountSettings, CountsFiles
from lape_ds.recipe import Recipe, check_frozen


@dataclass(frozen=True)
class Job:
    """An identification, the same on every rank.

    Attributes:
        recipe: Its recipe.
        model_folder: On this host.
        skeleton: The model without its weights.
        texts: By language, in the recipe's order.
        files: Its counts.
    """

    recipe: Recipe
    model_folder: Path
    skeleton: PreTrainedModel
    texts: Mapping[str, Text]
    files: CountFiles

    @property
    def shape(self) -> ModelShape:
        """Sizes of the model."""
        return model_shape(self.skeleton)

    @cached_property
    def counts(self) -> CountsFiles:
        """Of all languages: `counts()` goes through them, one in memory at a time."""
        return CountsFiles(self.files.of_language(language) for language in self.texts)


def prepare_job(recipe: Recipe) -> Job:
    """Reads and checks everything but the weights, and packs text that is not packed yet. All ranks must enter it.

    Raises:
        UserError: The model or its context cannot be used, text is missing, the folder is of another recipe, or ranks have
            unlike software, recipes, text or weights.
    """
    model_folder = recipe_model(recipe)
    settings = {
        "dtype": getattr(torch, recipe.counting_dtype),
        "attn_implementation": recipe.model.attn_implementation,
    }
    skeleton = load_skeleton(model_folder, **settings)
    model_shape(skeleton)  # refuses what is not supported
    if recipe.identify.reset_positions:
        check_can_reset_positions(skeleton)
    context_length = _context_length(recipe, skeleton.config)
    tokenizer = load_tokenizer(model_folder)
    check_frozen(recipe, recipe.counting_dir, sections=count_sections(recipe))
    corpora = identified_corpora(recipe, tokenizer, recipe.languages.identify)
    weights = _agree(recipe, model_folder, corpora)
    files = CountFiles(recipe.counting_dir, with_sums=recipe.identify.method == "mean_activation")
    texts = {
        code: Text(
            corpus,
            CountSettings(
                code,
                recipe.model.path,
                weights,
                context_length,
                recipe.counting_dtype,
                recipe.identify.reset_positions,
                recipe.model.attn_implementation,
            ),
        )
        for code, corpus in corpora.items()
    }
    return Job(recipe, model_folder, skeleton, texts, files)


def _context_length(recipe: Recipe, config: PretrainedConfig) -> int:
    longest = getattr(config, "max_position_embeddings", None)
    asked = recipe.identify.context_length or longest
    if asked is None:
        raise UserError(
            f"model.path={recipe.model.path} has no longest context; set identify.context_length, e.g. 2048"
        )
    if longest is not None and asked > longest:
        raise UserError(
            f"identify.context_length={asked} is longer than the model's context; at most {longest} is "
            "allowed"
        )
    return asked


def _agree(recipe: Recipe, model_folder: Path, corpora: Mapping[str, PackedCorpus]) -> str:
    """The fingerprint of the weights, which one rank of each host takes; everything else is every rank's own to look at."""
    hosts = ranks.meet(socket.gethostname())
    looks = hosts.index(hosts[ranks.rank()]) == ranks.rank()
    weights = fingerprint(model_folder) if looks else None
    if ranks.world_size() == 1:
        assert weights is not None
        return weights
    seen = {
        "recipe": recipe.model_dump(mode="json"),
        "software": software(),
        "config": {"the model's config.json": _hash_of(model_folder / "config.json")},
        "texts": {f"the documents of {code}": corpus.train.fingerprint for code, corpus in corpora.items()},
        "weights": None if weights is None else {"the model's weights": weights},
        "folder": str(model_folder),  # where a host's own disk holds it: may differ
    }
    reports = list(zip(hosts, ranks.meet(seen), strict=True))
    check_same([(host, found["software"]) for host, found in reports], SAME_SOFTWARE)
    check_same_recipe([(host, found["recipe"]) for host, found in reports])
    copy = f"copy {reports[0][1]['folder']} of {hosts[0]} to all, or share it"
    check_same([(host, found["config"]) for host, found in reports], copy)
    check_same(
        [(host, found["texts"]) for host, found in reports],
        "share corpus.cache_dir between the hosts, or copy the first host's",
    )
    check_same([(host, found["weights"]) for host, found in reports], copy)
    (first,) = reports[0][1]["weights"].values()
    return first


def _hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
