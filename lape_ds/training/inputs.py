"""What a run is made of, but for weights: its text, its neurons, how many steps, and what it must keep from beginning to end.

Between preflight and the model. Nothing here communicates: the first rank to need a text packs it, others wait at its lock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lape_ds.corpora.loader import TrainingBlocks
from lape_ds.corpora.packing import PackedCorpus
from lape_ds.corpora.tokenizing import token_layout
from lape_ds.distributed.ranks import world_size
from lape_ds.errors import UserError
from lape_ds.model.ffn import ffn_layers
from lape_ds.model.loading import load_tokenizer
from lape_ds.neurons.counts import Counts
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import NEURON_METHODS, Recipe, TrainSection
from lape_ds.subnetwork.methods import with_matched_lora
from lape_ds.training.checkpoint import LORA_R
from lape_ds.training.texts import HeldOut, Texts, heldout_part, prepare_texts


@dataclass(frozen=True)
class Inputs:
    """Of one run.

    Attributes:
        train: The recipe's section, with `lora.r` a number.
        chosen: The neurons that train, by language; None for methods without.
        neurons: int32 [n, 2], the same of all languages together.
        prefix_token_id: What stands before a text.
        corpora: Packed text by language: trained, measured and replayed (`Texts.by_name`).
        blocks: What is trained on, step by step.
        heldout: What is measured on.
        total_steps: Optimizer steps of the whole run.
        identity: By a name that a person understands, what a resumed run must have as it was.
    """

    train: TrainSection
    chosen: NeuronSet | None
    neurons: Tensor | None
    prefix_token_id: int
    corpora: dict[str, PackedCorpus]
    blocks: TrainingBlocks
    heldout: dict[str, HeldOut]
    total_steps: int
    identity: dict[str, str]


def read_inputs(recipe: Recipe, folder: Path, base_fingerprint: str, skeleton: PreTrainedModel) -> Inputs:
    """Reads a run's inputs, packing what text is not packed yet: that may take hours.

    Args:
        recipe: Of the run.
        folder: Of its model.
        base_fingerprint: Of the weights there.
        skeleton: The model without them.

    Raises:
        UserError: Something in the recipe or its files must be mended.
    """
    train, chosen = recipe.train, chosen_neurons(recipe, base_fingerprint, skeleton)
    neurons = None if chosen is None else chosen.union(*chosen.languages)
    if neurons is not None and train.method not in NEURON_METHODS:  # read only to be matched
        train = with_matched_lora(train, skeleton, neurons)
        chosen = neurons = None
    tokenizer = load_tokenizer(folder)
    prefix = prefix_token_id(recipe, tokenizer)
    texts = prepare_texts(recipe, tokenizer)
    corpora = texts.by_name()
    blocks = _training_blocks(recipe, texts)
    total_steps = num_steps(recipe, blocks)
    return Inputs(
        train=train,
        chosen=chosen,
        neurons=neurons,
        prefix_token_id=prefix,
        corpora=corpora,
        blocks=blocks,
        heldout={code: heldout_part(recipe, text) for code, text in texts.measured.items()},
        total_steps=total_steps,
        identity=_identity(recipe, train, neurons, corpora, total_steps),
    )


def chosen_neurons(recipe: Recipe, model_fingerprint: str, skeleton: PreTrainedModel) -> NeuronSet | None:
    """The neurons that train, by trained language (for a matched LoRA: those to match); None where none are needed.

    Raises:
        UserError: No neuron set there, or one of another model or without a trained language.
    """
    train = recipe.train
    if not recipe.needs_neurons:
        return None
    path = train.neurons or recipe.identify_dir / "neurons.safetensors"
    if not path.exists():
        raise UserError(
            f"no neuron set at {path}: run `lape-ds identify` with this recipe first, or set train.neurons"
        )
    found = NeuronSet.load(path)
    layers = ffn_layers(skeleton)
    try:
        found.check_model(model_fingerprint, num_layers=len(layers), neurons_per_layer=layers[0].num_neurons)
        own = found.only(*recipe.trained_languages)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if train.method == "random":
        return own.random_like(*own.languages, seed=train.random_seed)
    if train.method == "topk":
        probs_LI = activation_probabilities(recipe, own.languages, model_fingerprint)
        return own.most_active_like(*own.languages, probs_LI=probs_LI)
    return own


def activation_probabilities(recipe: Recipe, codes: Sequence[str], model_fingerprint: str) -> Tensor:
    """Of which the most active neurons are the largest: mean over languages, float64 [L, I], from the counts of `identify`.

    Raises:
        UserError: A language has no counts there, or counts of another model.
    """
    counts = []
    for code in codes:
        path = recipe.identify_dir / "counts" / f"{code}.safetensors"
        if not path.exists():
            raise UserError(
                f"which neurons are most active is read from {path}, which is not there: run `lape-ds identify` with this "
                "recipe first"
            )
        counts.append(Counts.load(path))
        if counts[-1].settings.model_fingerprint != model_fingerprint:
            raise UserError(
                f"{path} was counted on another model; run `lape-ds identify` with this recipe again"
            )
    return torch.stack([counts_k.probabilities() for counts_k in counts]).mean(0)


def prefix_token_id(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> int:
    """What stands before a text when its likelihood is measured: BOS, or EOS where the tokenizer has no BOS.

    Raises:
        UserError: It has neither.
    """
    layout = token_layout(tokenizer)
    prefix = layout.eos_id if layout.bos_id is None else layout.bos_id
    if prefix is None:
        raise UserError(
            f"the tokenizer of {recipe.model.path} has neither BOS nor EOS: nothing can stand before a text"
        )
    return prefix


def _training_blocks(recipe: Recipe, texts: Texts) -> TrainingBlocks:
    train = recipe.train
    return TrainingBlocks(
        {code: (text.train, _sampling_weight(train, code, text)) for code, text in texts.trained.items()},
        block_length=train.block_length,
        seed=recipe.seed,
        replay={code: (text.train, 1.0) for code, text in texts.replayed.items()},
        replay_share=train.replay.share,
    )


def _sampling_weight(train: TrainSection, code: str, text: PackedCorpus) -> float:
    """Of a trained language among the others, up to a common factor.

    Source: of the temperature, p proportional to size^(1/T), arXiv 1907.05019.
    """
    if train.temperature is None:
        return train.weights.get(code, 1.0)
    return text.train.num_tokens ** (1 / train.temperature)


def num_steps(recipe: Recipe, blocks: TrainingBlocks) -> int:
    """Optimizer steps of the whole run."""
    steps = max(1, round(recipe.train.epochs * blocks.num_blocks / global_batch_size(recipe)))
    return steps if recipe.train.max_steps is None else min(steps, recipe.train.max_steps)


def global_batch_size(recipe: Recipe) -> int:
    """Blocks of one optimizer step, over all ranks."""
    return recipe.train.micro_batch_size * recipe.train.gradient_accumulation_steps * world_size()


def _identity(
    recipe: Recipe,
    train: TrainSection,
    neurons: Tensor | None,
    corpora: Mapping[str, PackedCorpus],
    total_steps: int,
) -> dict[str, str]:
    """What a run must keep from beginning to end, whatever is remade meanwhile under the same names."""
    identity = {"method": train.method, "steps": str(total_steps)}
    if train.method == "lora":
        identity[LORA_R] = str(train.lora.r)
    identity["blocks a step (micro_batch_size x gradient_accumulation_steps x ranks)"] = str(
        global_batch_size(recipe)
    )
    if neurons is not None:
        identity["neurons"] = hashlib.sha256(neurons.numpy().tobytes()).hexdigest()[:16]
    for code, corpus in corpora.items():
        identity[f"text of {code}"] = f"{corpus.fingerprint}, {corpus.train.num_tokens} tokens"
    return identity
