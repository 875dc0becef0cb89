"""From a recipe to a training that can run: preflight, inputs, model, engine, resumed state.

Before the loop. A rank that finds a mistake alone ends the job for all (heartbeat.py); where all may go on from it, as a sweep
does, they agree on it first (`together`).
"""

from __future__ import annotations

import math
import sys
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor
from transformers import PreTrainedModel

from lape_ds.distributed.ranks import by_first, device, rank, start, together, world_size
from lape_ds.distributed.run_lock import take_lock
from lape_ds.model.anchor import BaseAnchor
from lape_ds.model.ffn import decoder_layers
from lape_ds.model.loading import load_model, load_skeleton, recipe_model
from lape_ds.model.loss import LanguageModelLoss
from lape_ds.recipe import Recipe, TrainSection, check_frozen
from lape_ds.subnetwork.anchor import L2Anchor
from lape_ds.subnetwork.methods import Trained, prepare, torch_optimizer
from lape_ds.subnetwork.recomputing import recompute_layers
from lape_ds.training.checkpoint import CheckpointReader, CheckpointState
from lape_ds.training.inputs import Inputs, global_batch_size, read_inputs
from lape_ds.training.loop import Training
from lape_ds.training.metrics import Metrics
from lape_ds.training.opening import open_run_folder, write_start
from lape_ds.training.partitioned import fill_partitioned
from lape_ds.training.preflight import check_inputs, preflight
from lape_ds.training.restarts import goes_on
from lape_ds.training.resuming import resumed_checkpoint
from lape_ds.training.run_folder import RUN_SECTIONS
from lape_ds.training.update_norms import UpdateNorms
from lape_ds.training.zero import check_offload, check_version, engine_config, initialize, monitor_config
from lape_ds.writing import told_if_unwritable


def set_up(recipe: Recipe) -> Training:
    """Prepares a run, or the rest of one. Every rank must call it.

    Raises:
        UserError: Something in the recipe or its files must be mended.
    """
    check_offload(recipe.deepspeed)
    check_version(recipe)
    folder = recipe_model(recipe)
    check_frozen(recipe, recipe.run_dir, sections=RUN_SECTIONS)
    start()
    base_fingerprint = preflight(recipe, folder)
    skeleton = together(lambda: base_skeleton(recipe, folder))
    inputs = read_inputs(recipe, folder, base_fingerprint, skeleton)
    check_inputs(recipe, inputs, skeleton)
    torch.manual_seed(recipe.seed)
    other = "set another train.run_name"
    run_lock = together(lambda: take_lock(recipe.run_dir, instead=other) if rank() == 0 else None)
    checkpoint = None
    if by_first(lambda: goes_on(recipe)):
        checkpoint = resumed_checkpoint(recipe.run_dir, base_fingerprint, inputs.identity)
    config = together(lambda: _config(recipe, skeleton))
    model = _load(recipe, folder, skeleton, config)
    return _build(recipe, folder, base_fingerprint, model, inputs, checkpoint, config, run_lock)


def _build(
    recipe: Recipe,
    folder: Path,
    base_fingerprint: str,
    model: PreTrainedModel,
    inputs: Inputs,
    checkpoint: CheckpointReader | None,
    config: dict[str, Any],
    run_lock: IO[str] | None,
) -> Training:
    """Makes of all that is read a training."""
    run_dir = recipe.run_dir
    trained, pull = together(lambda: _prepare(model, inputs.train, inputs.neurons, checkpoint))
    loss = together(lambda: LanguageModelLoss(model))
    anchor = together(lambda: _anchor(recipe, folder))
    # Only now, when nothing is left to refuse: what an earlier run left is touched, and this recipe is the folder's.
    by_first(lambda: open_run_folder(recipe, run_dir))
    engine = initialize(loss, torch_optimizer(trained), config)
    if pull is not None:
        trained.anchor_to(pull)
        pull.forget()
    if checkpoint is not None:
        trained.load_entries(checkpoint.read, checkpoint.scalars)
    new = CheckpointState(0, base_fingerprint, trained.num_entries, inputs.identity, best=None)
    training = Training(
        recipe=recipe,
        run_dir=run_dir,
        run_lock=run_lock,
        engine=engine,
        trained=trained,
        blocks=inputs.blocks,
        heldout=inputs.heldout,
        metrics=together(lambda: _metrics(run_dir, engine, checkpoint)),
        prefix_token_id=inputs.prefix_token_id,
        global_batch_size=global_batch_size(recipe),
        total_steps=inputs.total_steps,
        state=new if checkpoint is None else checkpoint.state,
        anchor=anchor,
        update_norms=UpdateNorms(trained) if recipe.train.log_update_norms else None,
    )
    by_first(lambda: write_start(training, inputs.chosen))
    return training


def _metrics(run_dir: Path, engine: DeepSpeedEngine, checkpoint: CheckpointReader | None) -> Metrics:
    path = run_dir / "metrics.jsonl" if rank() == 0 else None
    with told_if_unwritable(str(path)):
        return Metrics(path, engine, resumed_step=-1 if checkpoint is None else checkpoint.state.step)


def base_skeleton(recipe: Recipe, folder: Path) -> PreTrainedModel:
    """The base model without its weights, which all checks read; under ZeRO-3 it is what is filled and trained."""
    section = recipe.model
    dtype = getattr(torch, section.dtype)
    return load_skeleton(folder, dtype=dtype, attn_implementation=section.attn_implementation)


def _load(recipe: Recipe, folder: Path, skeleton: PreTrainedModel, config: dict[str, Any]) -> PreTrainedModel:
    """The base model: whole on this rank's device, or partitioned by the engine's configuration. Collective."""
    section = recipe.model
    if recipe.deepspeed.zero_stage < 3:
        settings = {"dtype": section.dtype, "attn_implementation": section.attn_implementation}
        return together(lambda: load_model(folder, **settings, device=device())).train()
    fill_partitioned(skeleton, folder, config)
    return skeleton.train()


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


def _config(recipe: Recipe, skeleton: PreTrainedModel) -> dict[str, Any]:
    largest = max(weight.numel() for weight in skeleton.parameters())
    return engine_config(
        recipe.train,
        recipe.deepspeed,
        dtype=recipe.model.dtype,
        largest_part=math.ceil(largest / world_size()),
        monitors=monitor_config(recipe),
    )
