"""From a recipe to a training that can run: corpora, model, neurons, engine, resumed state.

Before the loop. The order matters: all that can be refused is refused before the process group exists, so that a user's
mistake is one line and not a hang.
"""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lape_ds.corpora.loader import TrainingBlocks
from lape_ds.corpora.packing import PackedCorpus
from lape_ds.corpora.prepare import prepare_corpora
from lape_ds.corpora.tokenizing import token_layout
from lape_ds.errors import UserError
from lape_ds.model.ffn import ffn_layers
from lape_ds.model.loading import fingerprint, load_model, load_skeleton, load_tokenizer, resolve_model
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import Recipe, TokenBudget, TrainSection, freeze_recipe
from lape_ds.runlog import write_run_json
from lape_ds.subnetwork.methods import prepare, torch_optimizer
from lape_ds.training.checkpoint import CheckpointReader, CheckpointState, pointed_to
from lape_ds.training.export import write_entries
from lape_ds.training.loop import HeldOut, Training
from lape_ds.training.memory import describe_memory
from lape_ds.training.metrics import Metrics
from lape_ds.training.ranks import rank, start, together, world_size
from lape_ds.training.zero import engine_config, initialize

# What decides a run's numbers. Not how they are computed: a run may go on with other ranks, another ZeRO stage, another
# micro-batch of the same global batch.
_HOW = {
    "engine",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "checkpoint_every_steps",
}
_HOW |= {"resume", "tensorboard", "wandb"}
_SECTIONS = (
    "seed",
    "languages",
    "model",
    "corpus",
    *(f"train.{key}" for key in TrainSection.model_fields if key not in _HOW),
)


def set_up(recipe: Recipe) -> Training:
    """Prepares a run, or the rest of one. Every rank must call it.

    Raises:
        UserError: Something in the recipe or its files must be mended.
    """
    run_dir = recipe.run_dir
    folder = resolve_model(recipe.model.path, recipe.model.revision)
    base_fingerprint = fingerprint(folder)
    chosen = chosen_neurons(recipe, folder, base_fingerprint)
    neurons = None if chosen is None else chosen.union(*chosen.languages)
    tokenizer = load_tokenizer(folder)
    if rank() == 0:
        _open_run_folder(recipe, run_dir)
    # No collective before this: the first rank packs, the others wait at its lock, for hours if need be.
    corpora = _corpora(recipe, tokenizer)
    blocks = _training_blocks(recipe, corpora)

    start()
    torch.manual_seed(recipe.seed)
    model = together(
        lambda: load_model(
            folder, dtype=recipe.model.dtype, attn_implementation=recipe.model.attn_implementation
        )
    )
    checkpoint = together(lambda: _last_checkpoint(recipe, run_dir, base_fingerprint))
    if checkpoint is not None:  # before DeepSpeed copies the weights into its masters
        write_entries(model, checkpoint, neurons)
    if recipe.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = together(lambda: prepare(model, recipe.train, neurons))
    engine = initialize(model, torch_optimizer(trained), _config(recipe, run_dir))
    if checkpoint is not None:
        trained.load_entries(checkpoint.read, checkpoint.scalars)

    total_steps = num_steps(recipe, blocks)
    state = CheckpointState(
        step=0,
        method=recipe.train.method,
        base_fingerprint=base_fingerprint,
        num_entries=trained.num_entries,
        global_batch_size=global_batch_size(recipe),
        best=None,
    )
    state = state if checkpoint is None else checkpoint.state
    if rank() == 0:
        if chosen is not None:
            chosen.save(run_dir / "neurons.safetensors")
        facts = {"stage": "train", "world_size": world_size(), "trained_parameters": trained.num_entries}
        facts |= {
            "parameters": _num_parameters(model),
            "total_steps": total_steps,
            "model_fingerprint": base_fingerprint,
        }
        write_run_json(run_dir, recipe, facts)
        print(describe_memory(engine, trained), file=sys.stderr)
        if state.step:
            print(f"going on from step {state.step:,} of {total_steps:,} ({run_dir})", file=sys.stderr)
    metrics = Metrics(run_dir / "metrics.jsonl" if rank() == 0 else None, engine, resumed_step=state.step)
    heldout = {code: _heldout(recipe, corpora[code]) for code in _measured(recipe)}
    layout = token_layout(tokenizer)
    prefix = layout.eos_id if layout.bos_id is None else layout.bos_id
    if prefix is None:
        raise UserError(
            f"the tokenizer of {recipe.model.path} has neither BOS nor EOS: nothing can stand before a text"
        )
    return Training(recipe, run_dir, engine, trained, blocks, heldout, metrics, prefix, total_steps, state)


def _open_run_folder(recipe: Recipe, run_dir: Path) -> None:
    if recipe.train.resume == "never" and run_dir.exists():
        freeze_recipe(recipe, run_dir, sections=_SECTIONS)
        shutil.rmtree(run_dir)
    freeze_recipe(recipe, run_dir, sections=_SECTIONS)


def _last_checkpoint(recipe: Recipe, run_dir: Path, base_fingerprint: str) -> CheckpointReader | None:
    folder = pointed_to(run_dir / "checkpoints", "last")
    if folder is None:
        return None
    checkpoint = CheckpointReader(folder)
    if checkpoint.state.base_fingerprint != base_fingerprint:
        raise UserError(
            f"{folder} was trained from other weights than {recipe.model.path} now holds; restore the base model, or start "
            "over with train.resume=never"
        )
    if checkpoint.state.global_batch_size != global_batch_size(recipe):
        raise UserError(
            f"{run_dir} was trained with {checkpoint.state.global_batch_size} blocks a step, these settings give "
            f"{global_batch_size(recipe)}: micro_batch_size x gradient_accumulation_steps x ranks must stay the same"
        )
    return checkpoint


def global_batch_size(recipe: Recipe) -> int:
    """Blocks of one optimizer step, over all ranks."""
    return recipe.train.micro_batch_size * recipe.train.gradient_accumulation_steps * world_size()


def chosen_neurons(recipe: Recipe, model_folder: Path, model_fingerprint: str) -> NeuronSet | None:
    """The neurons that train, by trained language; None for methods that do not train neurons.

    Raises:
        UserError: No neuron set there, or one of another model or without a trained language.
    """
    train = recipe.train
    if train.method not in ("subnetwork", "random"):
        return None
    path = train.neurons or recipe.identify_dir / "neurons.safetensors"
    if not path.exists():
        raise UserError(
            f"no neuron set at {path}: run `lape-ds identify` with this recipe first, or set train.neurons"
        )
    found = NeuronSet.load(path)
    layers = ffn_layers(load_skeleton(model_folder))
    found.check_model(model_fingerprint, num_layers=len(layers), neurons_per_layer=layers[0].num_neurons)
    if train.method == "random":
        drawn = {code: found.random_like(code, train.random_seed) for code in recipe.trained_languages}
        first = next(iter(drawn.values()))
        return replace(first, indices={code: one.neurons(code) for code, one in drawn.items()})
    return replace(found, indices={code: found.neurons(code) for code in recipe.trained_languages})


def _replayed(recipe: Recipe) -> list[str]:
    if recipe.train.replay.share == 0:
        return []
    named = recipe.train.replay.languages or recipe.languages.identify
    return [code for code in named if code not in recipe.trained_languages]


def _measured(recipe: Recipe) -> list[str]:
    return list(dict.fromkeys([*recipe.trained_languages, *recipe.train.heldout.languages]))


def _corpora(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, PackedCorpus]:
    """Packed text: of the trained languages all that the recipe asks for, of the others only what they are needed for."""
    train = recipe.train
    own = recipe.trained_languages
    corpora = prepare_corpora(recipe, tokenizer, own, train_tokens=dict.fromkeys(own, train.tokens))
    # So many tokens make the held-out part about half as large again as is measured.
    enough_heldout = math.ceil(1.5 * train.heldout.tokens_per_language / recipe.corpus.heldout_share)
    needed: dict[str, TokenBudget] = {code: enough_heldout for code in _measured(recipe) if code not in own}
    replayed = _replayed(recipe)
    if replayed:
        num_own = sum(corpora[code].train.num_tokens for code in own)
        each = math.ceil(
            num_own * train.epochs * train.replay.share / (1 - train.replay.share) / len(replayed)
        )
        needed |= {code: max(each, int(needed.get(code, 1))) for code in replayed}
    return corpora | prepare_corpora(recipe, tokenizer, needed, train_tokens=needed, or_all=True)


def _training_blocks(recipe: Recipe, corpora: dict[str, PackedCorpus]) -> TrainingBlocks:
    train = recipe.train
    return TrainingBlocks(
        {code: (corpora[code].train, train.weights.get(code, 1.0)) for code in recipe.trained_languages},
        block_length=train.block_length,
        seed=recipe.seed,
        replay={code: (corpora[code].train, 1.0) for code in _replayed(recipe)},
        replay_share=train.replay.share,
    )


def num_steps(recipe: Recipe, blocks: TrainingBlocks) -> int:
    """Optimizer steps of the whole run."""
    steps = max(1, round(recipe.train.epochs * blocks.num_blocks / global_batch_size(recipe)))
    return steps if recipe.train.max_steps is None else min(steps, recipe.train.max_steps)


def _heldout(recipe: Recipe, corpus: PackedCorpus) -> HeldOut:
    documents = list(corpus.heldout.documents(recipe.train.heldout.tokens_per_language))
    return HeldOut(documents, sum(document.num_bytes for document in documents))


def _config(recipe: Recipe, run_dir: Path) -> dict[str, Any]:
    train = recipe.train
    extra = dict(recipe.deepspeed.config)
    if train.tensorboard:
        extra["tensorboard"] = {"enabled": True, "output_path": str(run_dir), "job_name": "tensorboard"}
    if train.wandb is not None:
        if find_spec("wandb") is None:
            raise UserError(
                "train.wandb is set but wandb is not installed; run `pip install wandb`, or unset it"
            )
        extra["wandb"] = {"enabled": True, "project": train.wandb, "group": recipe.name}
    return engine_config(
        zero_stage=recipe.deepspeed.zero_stage,
        dtype=recipe.model.dtype,
        offload_optimizer=recipe.deepspeed.offload_optimizer,
        micro_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        gradient_clipping=train.gradient_clipping,
        extra=extra,
    )


def _num_parameters(model: PreTrainedModel | nn.Module) -> int:
    return sum(getattr(param, "ds_numel", param.numel()) for param in model.parameters())
