"""One rank's share of a round: its units, one after the other, through its model into files.

Between the plan and the files of counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel

from lape_ds.corpora.streams import Block
from lape_ds.distributed import ranks
from lape_ds.errors import UserError, first_line
from lape_ds.identification.files import Written
from lape_ds.identification.job import Job
from lape_ds.identification.rounds import Plan
from lape_ds.identification.units import Unit
from lape_ds.model.loading import load_model
from lape_ds.neurons.counting import count_activations
from lape_ds.neurons.counts import CountedBlocks, Counts
from lape_ds.runlog import Progress
from lape_ds.training.main import is_out_of_memory
from lape_ds.writing import told_if_unwritable

SECONDS_BETWEEN_WRITES = 2.0


class Counter:
    """Counts shares; loads the model when there is something to count."""

    def __init__(self, job: Job) -> None:
        """Loads nothing yet."""
        self._job = job
        self._section = job.recipe.identify

    def count(self, plan: Plan) -> list[Written]:
        """Counts this rank's units into their files, and adds up those of languages that are this rank's alone.

        Under ZeRO-3 all ranks must enter it.

        Returns:
            The files that it leaves.

        Raises:
            UserError: The model computes NaN, or memory ran out.
        """
        units = plan.shares[ranks.rank()]
        try:
            written = self._count(units, plan)
            self._keep_step(units, plan)
            return written
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._out_of_memory(error) from error

    def _count(self, units: Sequence[Unit], plan: Plan) -> list[Written]:
        """Neighbours of a language go into one file, which is written anew every few seconds."""
        files, run = self._job.files, _Run(self._job)
        written: list[Written] = []
        total = sum(unit.num_blocks for unit in units)
        named = "Counting" if ranks.world_size() == 1 else f"Counting, rank 0 of {ranks.world_size()}"
        with Progress(named, total=total, unit="blocks") as bar:
            for number, unit in enumerate(units):
                run.add(unit, self._count_unit(unit, bar, with_sums=unit.language in plan.with_sums))
                following = units[number + 1] if number + 1 < len(units) else None
                if following is None or (following.language, following.start) != (unit.language, unit.stop):
                    path = run.end()
                    if plan.owner(unit.language) != ranks.rank():
                        written.append(files.written(path))
                    elif following is None or following.language != unit.language:
                        files.merge(self._job.texts[unit.language])
                        written.append(files.written(files.of_language(unit.language)))
        return written

    def _count_unit(self, unit: Unit, bar: Progress, *, with_sums: bool) -> Counts:
        text = self._job.texts[unit.language]
        stream, length = text.corpus.train, text.settings.context_length

        def blocks() -> Iterator[Block]:
            for number in range(unit.start, unit.stop):
                yield stream.block(number, length)
                bar.advance(note=unit.language)

        return count_activations(
            self._model,
            blocks(),
            batch_size=self._section.batch_size,
            settings=text.settings,
            part=text.part(unit.start, unit.stop),
            sum_activations=with_sums,
            device=ranks.device(),
        )

    def _keep_step(self, units: Sequence[Unit], plan: Plan) -> None:
        """Under ZeRO-3 goes on through empty batches until every rank has made as many forward passes: each gathers weights."""
        if self._section.zero_stage == 0:
            return
        missing = max(map(self._num_batches, plan.shares)) - self._num_batches(units)
        if missing == 0:
            return
        text = next(iter(self._job.texts.values()))
        block = text.corpus.train.block(0, text.settings.context_length)
        empty = replace(block, is_text=torch.zeros_like(block.is_text))
        count_activations(
            self._model,
            [empty] * missing,
            batch_size=1,
            settings=text.settings,
            part=CountedBlocks("", 0, missing, 0),
            sum_activations=bool(plan.with_sums),
            device=ranks.device(),
        )

    def _num_batches(self, units: Sequence[Unit]) -> int:
        return sum(math.ceil(unit.num_blocks / self._section.batch_size) for unit in units)

    @cached_property
    def _model(self) -> PreTrainedModel:
        recipe, folder = self._job.recipe, self._job.model_folder
        if self._section.zero_stage == 3:
            return self._partitioned()
        return load_model(
            folder,
            dtype=recipe.counting_dtype,
            attn_implementation=recipe.model.attn_implementation,
            device=ranks.device(),
        )

    def _partitioned(self) -> PreTrainedModel:
        """The model divided over all ranks, which must enter this."""
        ranks.start()  # DeepSpeed takes seconds to import
        from lape_ds.training.partitioned import fill_partitioned
        from lape_ds.training.zero import check_offload, forward_config, initialize_forward

        recipe, model = self._job.recipe, self._job.skeleton
        check_offload(recipe.deepspeed)
        largest = max(weight.numel() for weight in model.parameters())
        config = forward_config(
            recipe.deepspeed,
            dtype=recipe.counting_dtype,
            largest_part=math.ceil(largest / ranks.world_size()),
        )
        fill_partitioned(model, self._job.model_folder, config)
        # The head stays divided: it is never run.
        self._engine = initialize_forward(model.base_model, config)
        return model

    def _out_of_memory(self, error: BaseException) -> UserError:
        section = self._section
        ways = [f"identify.batch_size below {section.batch_size}"] if section.batch_size > 1 else []
        elsewhere = " (with another output_dir)" if self._job.files.holds_counts() else ""
        ways += [f"identify.context_length shorter{elsewhere}"]
        if section.zero_stage == 0:
            ways += ["identify.zero_stage=3, which divides the model over the ranks"]
        elif self._job.recipe.deepspeed.offload_parameters == "none":
            ways += ["deepspeed.offload_parameters=cpu (with deepspeed.zero_stage=3)"]
        return UserError(
            f"out of memory while counting ({first_line(error)[:200]}); set {', or '.join(ways)}"
        )


class _Run:
    """Units that lie next to each other, in one file that grows."""

    def __init__(self, job: Job) -> None:
        self._files = job.files
        self._counts: Counts | None = None
        self._unit: Unit | None = None  # all of it
        self._written: Path | None = None
        self._wrote_at = time.monotonic()

    def add(self, unit: Unit, counts: Counts) -> None:
        """Adds the neighbour of what is in it."""
        if self._counts is None or self._unit is None:
            self._counts, self._unit = counts, unit
        else:
            self._counts = self._counts.merge(counts)
            self._unit = replace(self._unit, stop=unit.stop)
        if time.monotonic() - self._wrote_at >= SECONDS_BETWEEN_WRITES:
            self._write()

    def end(self) -> Path:
        """The next unit is no neighbour; gives the file."""
        self._write()
        assert self._written is not None
        path, self._counts, self._unit, self._written = self._written, None, None, None
        return path

    def _write(self) -> None:
        assert self._counts is not None
        assert self._unit is not None
        path = self._files.of_unit(self._unit)
        if path == self._written:
            return
        with told_if_unwritable(str(path), kept="earlier counts"):
            self._counts.save(path)
        if self._written is not None:  # killed before this, the next run finds it covered
            self._written.unlink()
        self._written, self._wrote_at = path, time.monotonic()
