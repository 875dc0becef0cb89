"""The stage `lape-ds identify`: corpora → counts/<language>.safetensors → neurons.safetensors.

Between the corpora and subnetwork training. Each language's counts are a file of their own, so that an
interrupted run takes up again at the language where it stopped, a further language costs only its own
counting, and other knobs of the selection cost none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import PretrainedConfig, PreTrainedModel

from lape_ds.corpora.packing import PackedCorpus
from lape_ds.corpora.prepare import prepare_corpora
from lape_ds.errors import UserError
from lape_ds.model.loading import fingerprint, load_model, load_skeleton, load_tokenizer, recipe_model
from lape_ds.model.shape import ModelShape, model_shape
from lape_ds.neurons.counting import count_activations
from lape_ds.neurons.counts import CountedBlocks, Counts, CountSettings
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.neurons.selection import select_neurons
from lape_ds.recipe import IdentifySection, Recipe, check_frozen, freeze_recipe
from lape_ds.runlog import progress, write_run_json

# What the counts depend on. The languages and the knobs of the selection may change between runs: the neurons are selected
# anew from the counts that are there.
_SECTIONS = ("model", "corpus", "identify.context_length", "identify.tokens_per_language")


def identify(recipe: Recipe) -> NeuronSet:
    """Counts every language of `languages.identify`, selects the neurons, writes and prints them.

    Runs in one process, on the GPU if there is one.

    Returns:
        The neuron set, also written to `recipe.identify_dir / "neurons.safetensors"`.

    Raises:
        UserError: The model or its context cannot be used, text is missing, or the folder is of another
            recipe.
    """
    model_folder = recipe_model(recipe)
    skeleton = load_skeleton(model_folder)
    shape = model_shape(skeleton)
    context_length = _context_length(recipe, skeleton.config)
    tokenizer = load_tokenizer(model_folder)
    check_frozen(recipe, recipe.identify_dir, sections=_SECTIONS)

    codes = recipe.languages.identify
    budget = recipe.identify.tokens_per_language
    corpora = prepare_corpora(
        recipe,
        tokenizer,
        codes,
        train_tokens=dict.fromkeys(codes, budget),
        budget_key="identify.tokens_per_language",
    )
    freeze_recipe(recipe, recipe.identify_dir, sections=_SECTIONS)
    neuron_set = select_neurons(
        recipe.identify, _count_languages(recipe, corpora, model_folder, context_length)
    )
    neuron_set.save(recipe.identify_dir / "neurons.safetensors")
    made_of = {"model_fingerprint": neuron_set.model_fingerprint, "context_length": context_length}
    write_run_json(recipe.identify_dir, recipe, {"stage": "identify", **made_of})
    Console().print(_table(neuron_set, shape))
    return neuron_set


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


def _count_languages(
    recipe: Recipe, corpora: Mapping[str, PackedCorpus], model_folder: Path, context_length: int
) -> Iterator[Counts]:
    """Counts of one corpus after the other, from files where they are there; the model is loaded only where one is not."""
    model_fingerprint = fingerprint(model_folder)
    load = cache(partial(_load_on_device, recipe, model_folder))
    for code, corpus in corpora.items():
        settings = CountSettings(
            code, recipe.model.path, model_fingerprint, context_length, recipe.model.dtype
        )
        path = recipe.identify_dir / "counts" / f"{code}.safetensors"
        yield _reuse_or_count(path, load, corpus, settings, recipe.identify)


def _load_on_device(recipe: Recipe, folder: Path) -> PreTrainedModel:
    model = load_model(folder, dtype=recipe.model.dtype, attn_implementation=recipe.model.attn_implementation)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(device)  # pyright: ignore[reportArgumentType] (transformers wraps nn.Module.to)


def _reuse_or_count(
    path: Path,
    load: Callable[[], PreTrainedModel],
    corpus: PackedCorpus,
    settings: CountSettings,
    section: IdentifySection,
) -> Counts:
    """The counts in `path` if they are of the same text, model and settings; else counts and writes them."""
    with_sums = section.method == "mean_activation"
    stream, context_length = corpus.train, settings.context_length  # packing has cut it at the budget
    part = CountedBlocks(corpus.fingerprint, 0, stream.num_blocks(context_length), stream.num_tokens)
    if path.exists():
        found = Counts.load(path)
        enough = not with_sums or found.activation_sums is not None
        if found.settings == settings and found.parts == (part,) and enough:
            return found
    model = load()
    numbers = progress(part.stop, f"counting {settings.language}", unit="blocks")
    blocks = (stream.block(number, context_length) for number in numbers)
    counts = count_activations(
        model,
        blocks,
        batch_size=section.batch_size,
        settings=settings,
        part=part,
        sum_activations=with_sums,
    )
    counts.save(path)
    return counts


def _table(neuron_set: NeuronSet, shape: ModelShape) -> Table:
    distinct = len(neuron_set.union(*neuron_set.languages))
    all_neurons = shape.num_layers * shape.neurons_per_layer
    table = Table(title="Language neurons", caption=f"{distinct:,} distinct of {all_neurons:,} neurons")
    table.add_column("language")
    for heading in ("tokens", "neurons", "% of parameters"):
        table.add_column(heading, justify="right")
    for code in neuron_set.languages:
        num_neurons = neuron_set.num_neurons(code)
        share = 100 * num_neurons * shape.parameters_per_neuron / shape.num_parameters
        tokens = neuron_set.knobs["tokens"][code]
        table.add_row(code, f"{tokens:,}", f"{num_neurons:,}", f"{share:.2f}")
    return table
