"""From a run to the change of its neurons' activation probabilities.

After counting, whose counter this is; needs torch, a GPU if there is one. One model is in memory at a time.

Shape legend: L layers, I neurons of a layer, n neurons of a group, 16 document-hash buckets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lape_ds.analysis.intervals import half_widths
from lape_ds.analysis.training.activations import EDGES, Activations, GroupChange, Points
from lape_ds.analysis.training.run import AnalyzedRun
from lape_ds.corpora.packing import TokenStream
from lape_ds.distributed.ranks import device
from lape_ds.errors import NoText
from lape_ds.model.loading import load_tokenizer
from lape_ds.neurons.counting import count_activations
from lape_ds.neurons.counts import CountedBlocks, Counts, CountSettings
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import Recipe
from lape_ds.runlog import Progress
from lape_ds.training.texts import heldout_text

_RANDOM_SEED = 0


@dataclass(frozen=True, eq=False)
class _Text:
    """A language's held-out text, as far as it is counted."""

    stream: TokenStream
    fingerprint: str
    block_length: int
    num_blocks: int


def measure_activations(run: AnalyzedRun) -> Activations:
    """Counts held-out text of the trained languages and of those that the training measured beside, before and after.

    As much of each language as training measures (`train.heldout.tokens_per_language`), in blocks of `train.block_length`.

    Raises:
        UserError: The run is not exported, its base is not there as it was, or a trained language has no held-out text.
    """
    recipe, trained = run.recipe, run.trained  # first: whether there is a trained model
    groups, files = neuron_groups(run)
    texts, left_out = _texts(recipe, load_tokenizer(run.base_folder))
    total = 2 * sum(text.num_blocks for text in texts.values())
    with Progress("Counting", total=total, unit="blocks") as bar:
        before, after = (
            _count(load(device=device()), recipe, texts, bar) for load in (run.load_base, run.load_trained)
        )
    shape = next(iter(before.values())).active.shape[1:]
    members = {name: neurons.long() for name, neurons in groups.items()} | {"all": _all_neurons(shape)}
    return Activations(
        subject=run.subject(run.base, trained, *map(run.neuron_set, files)),
        num_tokens={code: counts.num_tokens() for code, counts in before.items()},
        left_out=left_out,
        num_neurons={name: len(neurons) for name, neurons in members.items()},
        changes={
            name: {code: group_change(before[code], after[code], neurons) for code in texts}
            for name, neurons in members.items()
        },
        points={
            name: {code: _points(before[code], after[code], members[name]) for code in texts}
            for name in groups
        },
    )


def neuron_groups(run: AnalyzedRun) -> tuple[dict[str, Tensor], list[Path]]:
    """The run's neurons, int32 `[n, 2]` by group but for `all`, and the files that they are from.

    Raises:
        UserError: A neuron set is damaged.
    """
    recipe = run.recipe
    trained = run.run_dir / "neurons.safetensors"
    identified = recipe.train.neurons or recipe.identify_dir / "neurons.safetensors"
    found: dict[str, NeuronSet] = {}
    files: list[Path] = []
    if trained.exists():
        found["trained"] = NeuronSet.load(trained)
        files.append(trained)
    if identified.exists() and recipe.train.method != "subnetwork":  # which trains just these
        whole = NeuronSet.load(identified)
        own = [code for code in recipe.trained_languages if code in whole.languages]
        if whole.model_fingerprint in ("", run.facts["model_fingerprint"]) and own:
            found["identified"] = whole.only(*own)
            files.append(identified)
    found = {name: one for name, one in found.items() if any(map(one.num_neurons, one.languages))}
    groups = {name: one.union(*one.languages) for name, one in found.items()}
    if found:
        first = next(iter(found.values()))
        drawn = first.random_like(*first.languages, seed=_RANDOM_SEED)
        groups["random"] = drawn.union(*drawn.languages)
    return groups, files


def _texts(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, _Text], dict[str, str]]:
    """Held-out text by language, the trained ones first; and why others have none."""
    texts: dict[str, _Text] = {}
    left_out: dict[str, str] = {}
    known = recipe.train.heldout.languages or recipe.languages.identify
    length = recipe.train.block_length
    for code in dict.fromkeys([*recipe.trained_languages, *known]):
        try:
            corpus = heldout_text(recipe, tokenizer, code)
        except NoText as error:
            if code in recipe.trained_languages:
                raise
            left_out[code] = str(error)
            continue
        stream = corpus.heldout
        tokens = min(stream.num_tokens, recipe.train.heldout.tokens_per_language)
        texts[code] = _Text(stream, corpus.fingerprint, length, stream.num_blocks(length, tokens))
    return texts, left_out


def _count(
    model: PreTrainedModel, recipe: Recipe, texts: Mapping[str, _Text], bar: Progress
) -> dict[str, Counts]:
    """Of every language, by the counter of identification."""
    batch_size = max(1, recipe.train.heldout.tokens_per_batch // recipe.train.block_length)
    found = {}
    for code, text in texts.items():
        settings = CountSettings(
            language=code,
            model_id=recipe.model.path,
            model_fingerprint="",
            context_length=text.block_length,
            dtype=recipe.model.dtype,
        )
        found[code] = count_activations(
            model,
            (text.stream.block(number, text.block_length) for number in range(text.num_blocks)),
            batch_size=batch_size,
            settings=settings,
            part=CountedBlocks(text.fingerprint, 0, text.num_blocks, 0),
            device=model.device,
        )
        bar.advance(text.num_blocks, note=code)
    return found


def group_change(before: Counts, after: Counts, neurons: Tensor) -> GroupChange:
    """What became of some neurons on one text.

    Args:
        before: Of the base.
        after: Of the trained model, of the same text.
        neurons: int64 `[n, 2]` of (layer, index), at least one.

    Raises:
        UserError: There is no text.
    """
    layer, index = neurons.unbind(1)
    tokens = before.num_tokens()
    active = [counts.active[:, layer, index] for counts in (before, after)]  # [16, n]
    totals = [part.sum(0, dtype=torch.int64) for part in active]
    changed_n = totals[1] - totals[0]
    change_n = changed_n.double() / tokens
    by_bucket = (active[1].double() - active[0].double()).mean(1)  # what each bucket adds, in tokens
    (half_width,) = half_widths(by_bucket[:, None].numpy(), before.tokens.double().numpy(), name="buckets")
    num_layers = before.active.shape[1]
    in_layer = torch.bincount(layer, minlength=num_layers)
    sums = torch.zeros(num_layers, dtype=torch.float64).index_add_(0, layer, change_n)
    return GroupChange(
        before=float(totals[0].double().mean()) / tokens,
        after=float(totals[1].double().mean()) / tokens,
        half_width=half_width,
        rising=float((changed_n > 0).double().mean()),
        falling=float((changed_n < 0).double().mean()),
        mean_absolute=float(change_n.abs().mean()),
        by_layer=tuple(
            total / number if number else None
            for total, number in zip(sums.tolist(), in_layer.tolist(), strict=True)
        ),
        histogram=tuple(np.histogram(change_n.numpy(), EDGES)[0].tolist()),
    )


def _points(before: Counts, after: Counts, neurons: Tensor) -> Points:
    layer, index = neurons.unbind(1)
    probabilities = [counts.probabilities()[layer, index].tolist() for counts in (before, after)]
    return Points(
        tuple(layer.tolist()), tuple(index.tolist()), tuple(probabilities[0]), tuple(probabilities[1])
    )


def _all_neurons(shape: torch.Size) -> Tensor:
    """int64 `[L · I, 2]`."""
    return torch.cartesian_prod(torch.arange(shape[0]), torch.arange(shape[1]))
