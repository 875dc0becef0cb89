"""From a recipe to a training that can run: corpora, model, neurons, engine, resumed state.

Before the loop. The order matters: what every rank finds alike is refused before they first need each other's answer, what one
may find alone is agreed on by all, so that a user's mistake is one line and not a hang.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lape_ds.corpora.loader import TrainingBlocks
from lape_ds.corpora.packing import PackedCorpus
from lape_ds.corpora.prepare import prepare_corpora
from lape_ds.corpora.tokenizing import token_layout
from lape_ds.errors import UserError
from lape_ds.model.anchor import BaseAnchor
from lape_ds.model.ffn import decoder_layers, ffn_layers
from lape_ds.model.loading import fingerprint, load_model, load_skeleton, load_tokenizer, recipe_model
from lape_ds.model.loss import LanguageModelLoss
from lape_ds.neurons.counts import Counts
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.recipe import Recipe, TokenBudget, TrainSection, check_frozen, freeze_recipe
from lape_ds.runlog import write_run_json
from lape_ds.subnetwork.anchor import L2Anchor
from lape_ds.subnetwork.methods import NEURON_METHODS, Trained, prepare, torch_optimizer, with_matched_lora
from lape_ds.subnetwork.recomputing import recompute_layers
from lape_ds.training.checkpoint import LORA_R, CheckpointReader, CheckpointState, pointed_to
from lape_ds.training.loop import HeldOut, Training
from lape_ds.training.memory import contents_of, describe_memory
from lape_ds.training.metrics import Metrics
from lape_ds.training.partitioned import fill_partitioned
from lape_ds.training.ranks import by_first, device, rank, start, together, world_size
from lape_ds.training.run_folder import RUN_SECTIONS
from lape_ds.training.zero import check_offload, engine_config, initialize


def set_up(recipe: Recipe) -> Training:
    """Prepares a run, or the rest of one. Every rank must call it.

    Raises:
        UserError: Something in the recipe or its files must be mended.
    """
    check_offload(recipe.deepspeed)
    run_dir = recipe.run_dir
    folder = recipe_model(recipe)
    start()
    base_fingerprint = by_first(lambda: fingerprint(folder))
    chosen = chosen_neurons(recipe, folder, base_fingerprint)
    found = None if chosen is None else chosen.union(*chosen.languages)
    neurons = found if recipe.train.method in NEURON_METHODS else None
    train = recipe.train
    if found is not None and neurons is None:  # read only to be matched
        train = with_matched_lora(train, load_skeleton(folder), found)
    tokenizer = load_tokenizer(folder)
    prefix = _prefix_token_id(recipe, tokenizer)
    check_frozen(recipe, run_dir, sections=RUN_SECTIONS)
    # No collective in here: the first rank packs, the others wait at its lock, for hours if need be.
    corpora = _corpora(recipe, tokenizer)
    blocks = _training_blocks(recipe, corpora)
    total_steps = num_steps(recipe, blocks)
    identity = _identity(recipe, train, neurons, corpora, total_steps)

    torch.manual_seed(recipe.seed)
    last = by_first(lambda: pointed_to(run_dir / "checkpoints", "last"))
    checkpoint = together(lambda: _resumed(recipe, last, base_fingerprint, identity))
    config = together(lambda: _config(recipe, run_dir, folder))
    model = _load(recipe, folder, config)
    trained, pull = together(lambda: _prepare(model, train, neurons, checkpoint))
    loss = together(lambda: LanguageModelLoss(model))
    anchor = together(lambda: _anchor(recipe, folder))
    # Only now, when nothing is left to refuse: what an earlier run left is touched, and this recipe is the folder's.
    run_lock = together(lambda: _open_run_folder(recipe, run_dir) if rank() == 0 else None)
    engine = initialize(loss, torch_optimizer(trained), config)
    if pull is not None:
        trained.anchor_to(pull)
        pull.forget()
    if checkpoint is not None:
        trained.load_entries(checkpoint.read, checkpoint.scalars)
    new = CheckpointState(0, base_fingerprint, trained.num_entries, identity, best=None)
    training = Training(
        recipe=recipe,
        run_dir=run_dir,
        run_lock=run_lock,
        engine=engine,
        trained=trained,
        blocks=blocks,
        heldout={code: _heldout(recipe, corpora[code]) for code in _measured(recipe)},
        metrics=Metrics(
            run_dir / "metrics.jsonl" if rank() == 0 else None,
            engine,
            resumed_step=-1 if checkpoint is None else checkpoint.state.step,
        ),
        prefix_token_id=prefix,
        global_batch_size=global_batch_size(recipe),
        total_steps=total_steps,
        state=new if checkpoint is None else checkpoint.state,
        anchor=anchor,
    )
    if rank() == 0:
        _write_start(training, chosen if neurons is not None else None)
    return training


def _load(recipe: Recipe, folder: Path, config: dict[str, Any]) -> PreTrainedModel:
    """The base model: whole on this rank's device, or partitioned by the engine's configuration. Collective."""
    section = recipe.model
    if recipe.deepspeed.zero_stage < 3:
        settings = {"dtype": section.dtype, "attn_implementation": section.attn_implementation}
        return together(lambda: load_model(folder, **settings, device=device())).train()
    dtype = getattr(torch, section.dtype)
    model = together(
        lambda: load_skeleton(folder, dtype=dtype, attn_implementation=section.attn_implementation)
    )
    fill_partitioned(model, folder, config)
    return model.train()


def _anchor(recipe: Recipe, folder: Path) -> BaseAnchor | None:
    """The base model as it was before any training, also in a resumed run."""
    weight = recipe.train.anchor.kl
    if weight == 0:
        return None
    section = recipe.model
    settings = {"dtype": section.dtype, "attn_implementation": section.attn_implementation}
    base = load_model(folder, **settings, device=device())
    if rank() == 0:
        size = sum(param.nbytes for param in base.parameters())
        print(
            f"train.anchor.kl keeps a copy of the base model on every rank: {size / 1e9:.3g} GB",
            file=sys.stderr,
        )
    return BaseAnchor(base, weight)


def _prepare(
    model: PreTrainedModel, train: TrainSection, neurons: Tensor | None, checkpoint: CheckpointReader | None
) -> tuple[Trained, L2Anchor | None]:
    """What trains, as training (or the rest of it) begins: with a checkpoint's weights before DeepSpeed copies its masters.

    Also what it is to be pulled to, which is the base in a resumed run too.
    """
    trained = prepare(model, train, neurons)
    pull = L2Anchor(trained.parameters, train.anchor.l2) if train.anchor.l2 else None
    if checkpoint is not None:
        trained.write_weights(partial(checkpoint.read_key, "master"))
    recompute_layers(model, train.gradient_checkpointing)
    if train.torch_compile:
        for layer in decoder_layers(model):
            layer.compile()
    return trained, pull


def _write_start(training: Training, chosen: NeuronSet | None) -> None:
    """Writes what the run is made of, and tells what it costs."""
    if chosen is not None:
        chosen.save(training.run_dir / "neurons.safetensors")
    facts = {
        "stage": "train",
        "world_size": world_size(),
        "trained_parameters": training.trained.num_entries,
        "parameters": contents_of(training.engine, training.trained).num_parameters,
        "total_steps": training.total_steps,
        "identity": training.state.identity,
        "model_fingerprint": training.state.base_fingerprint,
    }
    write_run_json(training.run_dir, training.recipe, facts)
    print(describe_memory(training.engine, training.trained), file=sys.stderr)
    recipe = training.recipe
    if recipe.train.max_steps is not None and training.total_steps < recipe.train.max_steps:
        print(
            f"the text gives {training.total_steps:,} steps at train.epochs={recipe.train.epochs:g}: train.max_steps="
            f"{recipe.train.max_steps:,} is not reached; raise train.epochs for more",
            file=sys.stderr,
        )
    if recipe.launch.num_ranks is not None and recipe.launch.num_ranks != world_size():
        print(
            f"running on {world_size()} ranks, the recipe's launch.num_ranks is {recipe.launch.num_ranks}",
            file=sys.stderr,
        )
    step = training.state.step
    if recipe.train.lora.r == "match" and recipe.train.method == "lora":
        print(
            f"train.lora.r: match gives r {training.state.identity[LORA_R]}, {training.trained.num_entries:,} weights",
            file=sys.stderr,
        )
    if 0 < step < training.total_steps:
        print(
            f"going on from step {step:,} of {training.total_steps:,} ({training.run_dir})", file=sys.stderr
        )


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


def _open_run_folder(recipe: Recipe, run_dir: Path) -> IO[str]:
    """Makes the folder this run's own; the lock lasts as long as the file returned stays open."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    lock = (run_dir.parent / f".{run_dir.name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another process is training in {run_dir}; wait for it, or set another train.run_name"
        ) from None
    if recipe.train.resume == "never" and run_dir.exists():
        shutil.rmtree(run_dir)
    freeze_recipe(recipe, run_dir, sections=RUN_SECTIONS)
    return lock


def _prefix_token_id(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> int:
    layout = token_layout(tokenizer)
    prefix = layout.eos_id if layout.bos_id is None else layout.bos_id
    if prefix is None:
        raise UserError(
            f"the tokenizer of {recipe.model.path} has neither BOS nor EOS: nothing can stand before a text"
        )
    return prefix


def _resumed(
    recipe: Recipe, folder: Path | None, base_fingerprint: str, identity: Mapping[str, str]
) -> CheckpointReader | None:
    """The checkpoint to go on from, if there is one and it is of this very run."""
    if folder is None or recipe.train.resume == "never":
        return None
    checkpoint = CheckpointReader(folder)
    now = {"base model": base_fingerprint[:16], **identity}
    then = {"base model": checkpoint.state.base_fingerprint[:16], **checkpoint.state.identity}
    for name in dict.fromkeys([*then, *now]):
        if now.get(name) != then.get(name):
            raise UserError(
                f"{folder.parent.parent} cannot go on: {name} was {then.get(name)} when it stopped and is {now.get(name)} now; "
                "restore that, or begin another run with train.run_name=… (train.resume=never discards this one)"
            )
    return checkpoint


def global_batch_size(recipe: Recipe) -> int:
    """Blocks of one optimizer step, over all ranks."""
    return recipe.train.micro_batch_size * recipe.train.gradient_accumulation_steps * world_size()


def chosen_neurons(recipe: Recipe, model_folder: Path, model_fingerprint: str) -> NeuronSet | None:
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
    layers = ffn_layers(load_skeleton(model_folder))
    try:
        found.check_model(model_fingerprint, num_layers=len(layers), neurons_per_layer=layers[0].num_neurons)
        own = {code: found.neurons(code) for code in recipe.trained_languages}
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if train.method == "random":
        return found.random_like(*own, seed=train.random_seed)
    if train.method == "topk":
        return found.most_active_like(*own, probs_LI=_activation_probabilities(recipe, model_fingerprint))
    return replace(found, indices=own)


def _activation_probabilities(recipe: Recipe, model_fingerprint: str) -> Tensor:
    """Mean over the trained languages, float64 [L, I], from the counts that the neurons were selected by."""
    counts = []
    for code in recipe.trained_languages:
        path = recipe.identify_dir / "counts" / f"{code}.safetensors"
        if not path.exists():
            raise UserError(f"train.method=topk needs {path}: run `lape-ds identify` with this recipe first")
        counts.append(Counts.load(path))
        if counts[-1].settings.model_fingerprint != model_fingerprint:
            raise UserError(
                f"{path} was counted on another model; run `lape-ds identify` with this recipe again"
            )
    return torch.stack([counts_k.probabilities() for counts_k in counts]).mean(0)


def _replayed(recipe: Recipe) -> list[str]:
    if recipe.train.replay.share == 0:
        return []
    named = recipe.train.replay.languages or recipe.languages.identify
    return [code for code in named if code not in recipe.trained_languages]


def _measured(recipe: Recipe) -> list[str]:
    return list(dict.fromkeys([*recipe.trained_languages, *recipe.train.heldout.languages]))


def _corpora(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> dict[str, PackedCorpus]:
    """Packed text: of the trained languages all that the recipe asks for, of the others only what they are needed for."""
    train, own = recipe.train, recipe.trained_languages
    asked: dict[str, TokenBudget] = {code: train.tokens for code in own}  # noqa: C420 - a wider type
    corpora = prepare_corpora(recipe, tokenizer, own, train_tokens=asked)
    # So many tokens make the held-out part about half as large again as is measured.
    enough_heldout = math.ceil(1.5 * train.heldout.tokens_per_language / recipe.corpus.heldout_share)
    measured: dict[str, TokenBudget] = {code: enough_heldout for code in _measured(recipe) if code not in own}
    replayed: dict[str, TokenBudget] = {}
    if train.replay.share:
        num_own = sum(corpora[code].train.num_tokens for code in own)
        replay_tokens = num_own * train.epochs * train.replay.share / (1 - train.replay.share)
        each = math.ceil(replay_tokens / len(_replayed(recipe)))
        replayed = {code: max(each, enough_heldout if code in measured else 1) for code in _replayed(recipe)}
    only_replayed: dict[str, TokenBudget] = {
        code: budget for code, budget in replayed.items() if code not in measured
    }
    measured |= {code: budget for code, budget in replayed.items() if code in measured}
    key = "train.heldout.tokens_per_language"
    corpora |= prepare_corpora(
        recipe, tokenizer, measured, train_tokens=measured, or_all=True, budget_key=key
    )
    return corpora | prepare_corpora(
        recipe,
        tokenizer,
        only_replayed,
        train_tokens=only_replayed,
        or_all=True,
        need_heldout=False,
        budget_key="train.replay.share",
    )


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


def _config(recipe: Recipe, run_dir: Path, folder: Path) -> dict[str, Any]:
    train, section = recipe.train, recipe.deepspeed
    extra = dict(recipe.deepspeed.config)
    if train.tensorboard:
        extra["tensorboard"] = {"enabled": True, "output_path": str(run_dir), "job_name": "tensorboard"}
    if train.wandb is not None:
        if find_spec("wandb") is None:
            raise UserError(
                "train.wandb is set but wandb is not installed; run `pip install wandb`, or unset it"
            )
        extra["wandb"] = {"enabled": True, "project": train.wandb, "group": recipe.name}
    largest = 0
    if section.offload_parameters == "nvme":
        largest = max(weight.numel() for weight in load_skeleton(folder).parameters())
    return engine_config(
        zero_stage=section.zero_stage,
        dtype=recipe.model.dtype,
        offload_optimizer=section.offload_optimizer,
        offload_parameters=section.offload_parameters,
        nvme_path=section.nvme_path,
        largest_part=math.ceil(largest / world_size()),
        micro_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        gradient_clipping=train.gradient_clipping,
        extra=extra,
    )
