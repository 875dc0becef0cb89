"""The stage `lape-ds identify`: corpora → counts/<language>.safetensors → neurons.safetensors.

Between the corpora and subnetwork training. What is counted is kept (files.py): an interrupted run goes on where it was, a
further language costs only its own counting, and other knobs of the selection cost none.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from lape_ds.distributed import ranks
from lape_ds.distributed.agreement import check_one_folder
from lape_ds.distributed.run_lock import take_lock
from lape_ds.identification.job import Job, prepare_job
from lape_ds.identification.rounds import Plan, next_plan
from lape_ds.identification.sections import count_sections
from lape_ds.identification.share import Counter
from lape_ds.neurons.counts import CountsHeader
from lape_ds.neurons.neuron_set import NeuronSet
from lape_ds.neurons.selection import select_neurons
from lape_ds.neurons.stability import LanguageStability, Stability, measure_stability
from lape_ds.recipe import Recipe, freeze_recipe
from lape_ds.runlog import write_run_json
from lape_ds.writing import told_if_unwritable, write_json


@dataclass(frozen=True)
class Tokens:
    """Of one language's text, BOS and EOS among them.

    Attributes:
        used: Those that were counted.
        saved: What is left of the budget: `stop_when: stable` did not need it, or it is other parts' (`part`).
    """

    used: int
    saved: int


def identify(recipe: Recipe) -> NeuronSet:
    """What `write_neurons` writes; errors are its own."""
    write_neurons(recipe)
    return NeuronSet.load(recipe.identify_dir / "neurons.safetensors")


def write_neurons(recipe: Recipe) -> None:
    """Counts every language of `languages.identify`, selects the neurons, writes and prints them.

    In one process, or on every rank of a job that has joined (ranks.py), on its GPU if there is one. The neuron set is in
    `recipe.identify_dir / "neurons.safetensors"`, which other hosts may see a minute later.

    Raises:
        UserError: The model or its context cannot be used, text is missing, the folder is of another recipe, or another job
            has it.
    """
    assert recipe.identify.part is None
    path = recipe.identify_dir / "neurons.safetensors"
    with _counted(recipe) as job:
        if ranks.rank() == 0:
            neuron_set, stability = _select(job)
            tokens = _tokens(job)
            with told_if_unwritable(str(path), kept="the counts"):
                neuron_set.save(path)
                if stability is not None:
                    write_json(path.with_name("stability.json"), stability.as_json())
                else:  # nor may one stay that is of another selection
                    path.with_name("stability.json").unlink(missing_ok=True)
                _write_run(job, tokens)
            Console().print(_table(neuron_set, stability, tokens, job))
        ranks.meet()  # Slurm ends a step soon after its first rank has left


def _select(job: Job) -> tuple[NeuronSet, Stability | None]:
    """The neurons, and how sure they are where the method lets it be measured."""
    section = job.recipe.identify
    neuron_set = select_neurons(section, job.counts())
    if section.method == "mean_activation":  # whose sums are not kept by document
        return neuron_set, None
    stability = measure_stability(section, job.counts, seed=job.recipe.seed)
    return replace(neuron_set, confidence=stability.confidence), stability


def count_part(recipe: Recipe) -> None:
    """Counts the units of `identify.part` into a folder of its own, and tells how the parts become one set.

    Raises:
        UserError: As `identify`.
    """
    assert recipe.identify.part_of is not None
    with _counted(recipe) as job:
        if ranks.rank() == 0:
            tokens = _tokens(job)
            with told_if_unwritable(str(job.files.folder), kept="the counts"):
                _write_run(job, tokens)
            counts = " ".join(
                str(recipe.identify_dir / f"part-{number}-of-{recipe.identify.part_of[1]}" / "counts")
                for number in range(recipe.identify.part_of[1])
            )
            merged = recipe.identify_dir / "counts"
            used = sum(one.used for one in tokens.values())
            print(f"part {recipe.identify.part}: {used:,} tokens counted in {job.files.folder / 'counts'}")
            print(f"when all parts are: lape-ds neurons merge {counts} {merged}")
            print(
                "then: lape-ds identify RECIPE (without identify.part), which counts what is missing and selects"
            )
        ranks.meet()


@contextmanager
def _counted(recipe: Recipe) -> Iterator[Job]:
    """A job with all its counts, whose folder nobody else uses meanwhile. All ranks must enter it."""
    job = prepare_job(recipe)
    first = ranks.rank() == 0
    lock = take_lock(recipe.counting_dir, instead="set another output_dir") if first else nullcontext()
    with lock:
        with told_if_unwritable(str(recipe.counting_dir), kept="earlier counts"):
            recipe.counting_dir.mkdir(parents=True, exist_ok=True)
        check_one_folder(recipe.counting_dir, "the first rank adds the counts of all")
        if first:
            for text in job.texts.values():
                job.files.check(text)
            if (
                not job.files.holds_counts()
            ):  # a round that counted nothing, maybe in blocks of another length
                job.files.end_round()
            with told_if_unwritable(str(recipe.counting_dir), kept="earlier counts"):
                freeze_recipe(recipe, recipe.counting_dir, sections=count_sections(recipe))
            job.files.clear()
        counter = Counter(job)
        while plan := _agreed_plan(job):
            reports = ranks.meet([socket.gethostname(), counter.count(plan)])
            if first:
                for number, (host, written) in enumerate(reports):
                    job.files.see(written, f"rank {number} on {host}")
        if first:
            job.files.clear()
        yield job


def _agreed_plan(job: Job) -> Plan | None:
    """The first rank's, on all ranks."""
    plan = next_plan(job, ranks.world_size()) if ranks.rank() == 0 else None
    message = ranks.meet(None if plan is None else plan.message())[0]
    return None if message is None else Plan.of(message)


def _tokens(job: Job) -> dict[str, Tokens]:
    found: dict[str, Tokens] = {}
    for language, text in job.texts.items():
        path = job.files.of_language(language)  # a small part may have nothing of a language
        parts = CountsHeader.read(path).parts if path.exists() else ()
        used = sum(part.num_tokens for part in parts)
        found[language] = Tokens(used, text.corpus.train.num_tokens - used)
    return found


def _write_run(job: Job, tokens: dict[str, Tokens]) -> None:
    text = next(iter(job.texts.values()))
    facts = {
        "stage": "identify",
        "world_size": ranks.world_size(),
        "model_fingerprint": text.settings.model_fingerprint,
        "context_length": text.settings.context_length,
        "tokens": {language: vars(one) for language, one in tokens.items()},
    }
    write_run_json(job.files.folder, job.recipe, facts)


def _table(
    neuron_set: NeuronSet, stability: Stability | None, tokens: Mapping[str, Tokens], job: Job
) -> Table:
    shape, early = job.shape, job.recipe.identify.stop_when == "stable"
    distinct = len(neuron_set.union(*neuron_set.languages))
    all_neurons = shape.num_layers * shape.neurons_per_layer
    caption = f"{distinct:,} distinct of {all_neurons:,} neurons"
    if stability is not None:
        caption += "\nagreement: Jaccard of the sets from half and all of the text"
    table = Table(title="Language neurons", caption=caption)
    table.add_column("language")
    sure = [] if stability is None else ["agreement", *(["confidence"] if stability.num_resamples else [])]
    # What is saved is told as a share: of it BOS and EOS are not known, which are none of the text's tokens.
    for heading in ("tokens", *(["saved"] if early else []), "neurons", "% of weights", *sure):
        table.add_column(heading, justify="right")
    for number, code in enumerate(neuron_set.languages):
        num_neurons = neuron_set.num_neurons(code)
        share = 100 * num_neurons * shape.parameters_per_neuron / shape.num_parameters
        one = tokens[code]
        row = [code, f"{neuron_set.knobs['tokens'][code]:,}"]
        row += [f"{100 * one.saved / (one.used + one.saved):.0f} %"] if early else []
        row += [f"{num_neurons:,}", f"{share:.2f}"]
        table.add_row(*row, *([] if stability is None else _sure(stability.languages[number])))
    return table


def _sure(one: LanguageStability) -> list[str]:
    """Agreement, and where there are resamples confidence."""
    confidence = [] if one.confidence is None else ["–" if one.summary is None else f"{one.summary.mean:.2f}"]
    return [f"{one.half.jaccard:.2f}", *confidence]
