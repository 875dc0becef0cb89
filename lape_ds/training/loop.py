"""The training loop: one for every method.

After identification; out comes a run folder with checkpoints, `metrics.jsonl` and `run.json`. What happens in step n is
a pure function of the recipe and n (batch, learning rate), so a resumed run needs only masters, moments and the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor

from lape_ds.corpora.loader import TrainingBlocks
from lape_ds.corpora.streams import NOT_SCORED
from lape_ds.distributed.ranks import by_first, device, rank, sum_over_ranks, world_size
from lape_ds.distributed.stopping import StopRequest
from lape_ds.errors import Diverged
from lape_ds.model.anchor import BaseAnchor
from lape_ds.model.scoring import bits_per_byte, score_documents
from lape_ds.recipe import Recipe, TrainSection
from lape_ds.runlog import Progress
from lape_ds.subnetwork.methods import Trained
from lape_ds.training.checkpoint import CheckpointState
from lape_ds.training.metrics import Metrics
from lape_ds.training.pruning import prune
from lape_ds.training.saving import save_checkpoint
from lape_ds.training.schedule import learning_rate
from lape_ds.training.texts import HeldOut
from lape_ds.training.update_norms import UpdateNorms
from lape_ds.training.zero import set_learning_rate, take_step


@dataclass
class Training:
    """All that the loop needs, set up by `training/setup.py`."""

    recipe: Recipe
    run_dir: Path
    run_lock: IO[str] | None  # held by the first rank until the process ends
    engine: DeepSpeedEngine
    trained: Trained
    blocks: TrainingBlocks
    heldout: dict[str, HeldOut]
    metrics: Metrics
    prefix_token_id: int
    global_batch_size: int  # blocks of one step, over all ranks
    total_steps: int
    state: CheckpointState
    anchor: BaseAnchor | None = None  # with `train.anchor.kl`
    update_norms: UpdateNorms | None = None  # with `train.log_update_norms`
    saved_step: int | None = None  # of the newest checkpoint that this process took part in writing
    keep_checkpoints: bool = True  # False: only as long as the run may have to go on from one
    base_bits: dict[str, float] | None = None  # held out, before the first step; measured if not known yet

    @property
    def train(self) -> TrainSection:
        """The recipe's section."""
        return self.recipe.train

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.run_dir / "checkpoints"


def run_training(training: Training, stop: StopRequest) -> bool:
    """Trains from the state's step to the end. Collective.

    Returns:
        Whether the end was reached; False after a stop request, with a checkpoint of the last step taken.

    Raises:
        Diverged: A loss, a norm or a weight is no longer finite; the metrics say so too.
        UserError: A checkpoint or the metrics cannot be written; earlier checkpoints are as they were.
    """
    stop.begin_steps()
    try:
        return _run_steps(training, stop)
    except Diverged as error:
        training.metrics.write(training.state.step, {"diverged": str(error)})
        raise


def _run_steps(training: Training, stop: StopRequest) -> bool:
    first = training.state.step
    with Progress("Training", total=training.total_steps, unit="steps", done=first) as bar:
        if first == 0:
            _measure(training)
        elif first == training.total_steps and not at_end(training):
            training.saved_step = first  # whence it comes
            _measure(training)
        for step in range(first, training.total_steps):
            started = time.monotonic()
            # Whatever rank was asked, all of them stop behind the same step.
            line, stopping = _train_step(training, step, stop)
            training.state = replace(training.state, step=step + 1)
            line["seconds"] = round(time.monotonic() - started, 4)
            line["tokens_per_second"] = round(line["tokens"] / line["seconds"], 1)
            training.metrics.write(step + 1, line)
            bar.advance(note=f"loss {line['loss']:.3f}, {line['tokens_per_second']:,.0f} tokens/s")
            last = step + 1 == training.total_steps
            every = training.train.heldout.every_steps
            if every is not None and (last or (step + 1) % every == 0):
                _measure(training)
            due = stopping or (step + 1) % training.train.checkpoint_every_steps == 0
            if training.keep_checkpoints if last else due:
                _save(training)
            if stopping and not last:
                return False
            stop.saw_step(time.monotonic() - started)
    by_first(training.metrics.sync)
    return True


def at_end(training: Training) -> bool:
    """Whether nothing is left to do, the last measurement included. Collective."""
    step = training.state.step
    if step < training.total_steps:
        return False
    return not training.heldout or by_first(lambda: training.metrics.has_measured(step))


def _train_step(training: Training, step: int, stop: StopRequest) -> tuple[dict[str, Any], bool]:
    """One optimizer step; also tells whether any rank has been asked to stop."""
    engine, train = training.engine, training.train
    # What a step draws (dropout, on the CPU and every GPU; nothing draws from Python's or NumPy's generator) is a function of
    # seed, step and rank: no random state need be kept, and it does not depend on where the run was last resumed.
    torch.manual_seed(((training.recipe.seed * 1_000_003 + step) * 65_537 + rank()) % 2**63)
    rate = learning_rate(step, training.total_steps, train.optimizer, train.schedule)
    set_learning_rate(engine, rate)
    micro_batches = _micro_batches(training, step)
    counted = [
        sum(part.num_scored for part in micro_batches),
        sum(part.num_replayed for part in micro_batches),
    ]
    wants_to_stop = stop.reason is not None or training.metrics.failure is not None
    counts = torch.tensor([*counted, int(wants_to_stop)], dtype=torch.float64)
    num_scored, num_replayed, stopping = sum_over_ranks(counts).tolist()
    sums = _backward(training, micro_batches, num_scored)
    norm = take_step(engine)
    nll, divergence = sum_over_ranks(sums).tolist()
    mean_loss = nll / max(1, num_scored)
    _refuse_divergence(step + 1, loss=mean_loss, gradient_norm=norm)
    values = {"tokens": int(num_scored), "loss": mean_loss, "learning_rate": rate, "gradient_norm": norm}
    if training.update_norms is not None:
        values |= training.update_norms.after_step()
    if training.anchor is not None and num_replayed > 0:
        values["kl_per_replayed_token"] = divergence / num_replayed
    return values, bool(stopping)


def _backward(training: Training, micro_batches: Sequence[_MicroBatch], num_scored: float) -> Tensor:
    """Accumulates the step's gradients; returns this rank's negative log-likelihood and divergence, float64 [2]."""
    engine = training.engine
    sums = torch.zeros(2, dtype=torch.float64, device=device())
    for number, part in enumerate(micro_batches):
        base = None
        if training.anchor is not None and len(part.replayed):
            base = training.anchor.states(part.input_ids, part.replayed)
        loss, *per_token = engine(input_ids=part.input_ids, targets=part.targets, base=base)
        sums[: len(per_token)] += torch.stack([values.sum() for values in per_token])
        # DeepSpeed means over micro-batches and ranks; the mean wanted is over the scored tokens of the whole batch, or
        # a block that is half padding would count as much as a full one.
        engine.backward(loss * (len(micro_batches) * world_size() / max(1, num_scored)))
        if number + 1 < len(micro_batches):
            engine.step()
    return sums


@dataclass(frozen=True)
class _MicroBatch:
    """What one backward sees.

    Attributes:
        input_ids: int64 [B, T].
        targets: int64 [B, T], aligned with the model's outputs; -100 where not scored.
        replayed: int64 [n], the rows that are replay.
        num_scored: Tokens with a target.
        num_replayed: Those of them in replayed rows.
    """

    input_ids: Tensor
    targets: Tensor
    replayed: Tensor
    num_scored: int
    num_replayed: int


def _micro_batches(training: Training, step: int) -> list[_MicroBatch]:
    """This rank's part of the step's batch. The batch is the same however many ranks share it."""
    batch = training.blocks.batch(step, global_batch_size=training.global_batch_size)
    size = training.train.micro_batch_size
    per_rank = len(batch) // world_size()
    mine = batch[rank() * per_rank : (rank() + 1) * per_rank]
    parts = []
    for start in range(0, per_rank, size):
        tensors = training.blocks.collate(mine[start : start + size])
        scored_B = (tensors["targets"] != NOT_SCORED).sum(1)
        parts.append(
            _MicroBatch(
                input_ids=tensors["input_ids"].to(device()),
                targets=tensors["targets"].to(device()),
                replayed=tensors["is_replay"].nonzero().view(-1).to(device()),
                num_scored=int(scored_B.sum()),
                num_replayed=int(scored_B[tensors["is_replay"]].sum()),
            )
        )
    return parts


def _refuse_divergence(step: int, **values: float) -> None:
    """Every rank must pass the same values, so that all of them stop."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(
                f"step {step}: {name} is {value}: training has diverged; go on with a lower "
                "train.optimizer.learning_rate and another train.run_name (what was kept of this run stays)"
            )


def _measure(training: Training) -> None:
    """Held-out bits per byte of every measured language; keeps the best checkpoint.

    It leaves no trace in the training: a step seeds its own draws, and nothing here has a gradient.
    """
    if (
        not training.heldout
    ):  # `train.heldout.every_steps: null`; then no checkpoint is the best, and the newest counts
        return
    step = training.state.step
    line: dict[str, Any] = {}
    bits = training.base_bits if step == 0 else None
    if bits is None:
        started = time.monotonic()
        bits = {code: _heldout_bits(training, heldout) for code, heldout in training.heldout.items()}
        line["heldout_seconds"] = round(time.monotonic() - started, 4)  # of all languages, all ranks together
    if step == 0:
        training.base_bits = bits
    _refuse_divergence(step, **{f"held-out {code}": value for code, value in bits.items()})
    own = training.recipe.trained_languages
    mean = sum(bits[code] for code in own) / len(own)
    is_best = training.state.best is None or mean < training.state.best["bits_per_byte"]
    if is_best:
        training.state = replace(training.state, best={"step": step, "bits_per_byte": mean})
    is_last = step == training.total_steps
    if (
        is_last and training.keep_checkpoints
    ):  # by the next line a run is finished, and has its last checkpoint
        _save(training)
    training.metrics.write(step, {"heldout_bits_per_byte": bits, **line})
    if is_best and not is_last and step > 0 and training.keep_checkpoints:
        _save(training)


def _heldout_bits(training: Training, heldout: HeldOut) -> float:
    nll = score_documents(
        training.engine,
        heldout.documents,
        prefix_token_id=training.prefix_token_id,
        max_length=training.train.block_length,
        tokens_per_batch=training.train.heldout.tokens_per_batch,
        rank=rank(),
        world_size=world_size(),
    )
    return bits_per_byte(float(sum_over_ranks(nll).sum()), heldout.num_bytes)


def _save(training: Training) -> None:
    """Writes a checkpoint of this step, unless that has just been done, and removes what is no longer needed."""
    step = training.state.step
    if training.saved_step == step:
        return
    by_first(training.metrics.sync)
    save_checkpoint(training.checkpoints, training.trained, training.state)
    training.saved_step = step
    by_first(lambda: prune(training.checkpoints, keep=training.train.keep_checkpoints))
