"""`lape-ds <stage> RECIPE [key=value …]`: a thin command for each stage, which imports its room when it runs.

The end of the data's way, above every room. Exit codes: 0 done; 2 the user must mend something (one line on
stderr); 1 our fault (a traceback); 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lape_ds import __version__
from lape_ds.cli_arguments import OverridesArgument, RecipeArgument, listed
from lape_ds.cli_eval import add_eval_commands
from lape_ds.cli_pack import add_pack_commands
from lape_ds.cli_plan import add_plan_commands
from lape_ds.errors import UserError, tell_error
from lape_ds.noise import quiet_deepspeed

if TYPE_CHECKING:
    from lape_ds.recipe import Recipe, TokenBudget

app = typer.Typer(
    name="lape-ds",
    help="Find the neurons of one language and fine-tune only those, under DeepSpeed.\n\n"
    "The way: pretrain (quickstart only), corpus, identify, train, export, eval, summary; sweep to compare "
    "methods; plan and tune before a training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
neurons_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(neurons_app, name="neurons", help="Look at, compare, import and export neuron sets.")

bench_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench_app, name="bench", help="Measure methods and counting side by side on this machine.")

NeuronsArgument = Annotated[
    str,
    typer.Argument(
        metavar="SET", help="A neurons.safetensors, or a recipe that has one.", show_default=False
    ),
]


def main() -> None:
    """The console script: runs a command and turns what went wrong into an exit code."""
    quiet_deepspeed()
    if _is_spare():
        sys.exit(0)
    try:
        code = app(standalone_mode=False)
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except UserError as error:
        _refuse(str(error))
    except typer.TyperException as error:  # of the command line itself: unknown option, missing argument
        if _process_number() > 0:  # ranks have the same command line: one of them tells
            sys.exit(2)
        message = error.format_message()
        if message.startswith("Usage:"):  # a bare `lape-ds` or `lape-ds neurons`: its whole help
            print(message, file=sys.stderr)
            sys.exit(2)
        _refuse(f"{message} (see `lape-ds --help`)")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `lape-ds languages | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code or 0)


def _is_spare() -> bool:
    """Whether srun or torchrun has started this process beside a first one, for a stage that takes one."""
    return _process_number() > 0 and sys.argv[1:2] not in (["train"], ["eval"])


def _process_number() -> int:
    from lape_ds.training.launchers.slurm import process_number

    return process_number()


def _refuse(message: str) -> None:
    tell_error(message)
    sys.exit(2)


def _load(path: str, overrides: list[str] | None) -> Recipe:
    from lape_ds.recipe import load_recipe
    from lape_ds.recipe.environment import enter_environment

    recipe = load_recipe(path, overrides or [])
    enter_environment(recipe.env)
    return recipe


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def pretrain(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Make the recipe's own tokenizer and tiny model (`model.create`).

    Example: lape-ds pretrain recipes/quickstart.yaml
    """
    _load(recipe, overrides)  # a bad one is refused before anything heavy is imported
    from lape_ds.training.pretrain import pretrain

    pretrain(recipe, overrides or [])


@app.command()
def corpus(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Read, tokenise and pack the text of the identified and the trained languages, once.

    Example: lape-ds corpus recipes/llama-3.1-8b.yaml corpus.cache_dir=packed
    """
    loaded = _load(recipe, overrides)
    from lape_ds.corpora.prepare import prepare_corpora
    from lape_ds.model.loading import load_tokenizer, recipe_model

    tokenizer = load_tokenizer(recipe_model(loaded))
    # Packing to a second budget goes on where the first ended.
    wanted: list[tuple[list[str], TokenBudget, str]] = [
        (loaded.languages.identify, loaded.identify.tokens_per_language, "identify.tokens_per_language"),
        (loaded.trained_languages, loaded.train.tokens, "train.tokens"),
    ]
    for codes, budget, key in wanted:
        budgets: dict[str, TokenBudget] = {code: budget for code in codes}  # noqa: C420 - a wider type
        packed = prepare_corpora(loaded, tokenizer, codes, train_tokens=budgets, budget_key=key)
        for code, text in packed.items():
            tokens, heldout = text.train.num_tokens, text.heldout.num_tokens
            typer.echo(f"{key} {code}: {tokens:,} tokens packed, {heldout:,} held out")


@app.command()
def identify(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Count p(gate > 0) for every language and select each language's neurons (LAPE).

    Example: lape-ds identify recipes/llama-3.1-8b.yaml identify.top_rate=0.01
    """
    loaded = _load(recipe, overrides)
    from lape_ds.neurons.identify import identify

    identify(loaded)
    typer.echo(f"written to {loaded.identify_dir / 'neurons.safetensors'}")


@app.command()
def train(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Train under DeepSpeed, as launch/train.sh does; goes on from the last checkpoint.

    Example: lape-ds train recipes/llama-3.1-8b.yaml train.method=random launch.num_ranks=8
    """
    _load(recipe, overrides)
    from lape_ds.training.launch import launch_training

    launch_training(recipe, overrides or [])


@app.command()
def sweep(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Train every method at several learning rates and seeds, and draw what each gains and forgets.

    Example: lape-ds sweep recipes/quickstart.yaml sweep.seeds=[0,1,2]
    """
    loaded = _load(recipe, overrides)
    from lape_ds.analysis.report import report_frontier
    from lape_ds.training.sweep_launch import launch_sweep

    launch_sweep(loaded, recipe, overrides or [])
    report_frontier(loaded)


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run folder or its recipe.", show_default=False)
    ],
    overrides: OverridesArgument = None,
    checkpoint: Annotated[Literal["best", "last"], typer.Option(help="Which weights.")] = "best",
    output: Annotated[Path | None, typer.Option(help="The folder to write; RUN/model if not given.")] = None,
) -> None:
    """Write the trained model as a plain Hugging Face folder and compare it with its base, bit for bit.

    Example: lape-ds export runs/quickstart/train/subnetwork
    """
    is_run = (Path(run) / "recipe.yaml").is_file() and not overrides
    run_dir = Path(run) if is_run else _load(run, overrides).run_dir
    from lape_ds.training.export import export_model

    done = export_model(run_dir, checkpoint=checkpoint, folder=output)
    typer.echo(
        f"{done.folder}: step {done.step:,} of {done.total_steps:,}; of {done.total:,} weights {done.trained:,} were trained and "
        f"{done.changed:,} changed; where nothing was trained, every bit equals the base"
    )


@app.command()
def summary(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Print what every exported run of a recipe measured before and after training.

    Example: lape-ds summary recipes/quickstart.yaml
    """
    from lape_ds.training.outcome import summarize

    summarize(_load(recipe, overrides))


@app.command()
def languages(
    text: Annotated[
        str | None, typer.Argument(help="Any code or English name; all languages if not given.")
    ] = None,
) -> None:
    """List the languages and their codes, or show one.

    Example: lape-ds languages Maltese
    """
    from lape_ds.languages import all_languages, find_language

    if text is None:
        for language in all_languages():
            typer.echo(f"{language.code:10} {language.iso639_1 or '':3} {language.name}")
        return
    language = find_language(text)
    for field, value in language.placeholders().items():
        typer.echo(f"{field:12} {value}")
    typer.echo(f"{'also':12} {', '.join(language.aliases)}")


add_plan_commands(app)
add_eval_commands(app)
add_pack_commands(app)


@neurons_app.command("show")
def show_neurons(neurons: NeuronsArgument) -> None:
    """How many neurons each language has, and where.

    Example: lape-ds neurons show runs/quickstart/identify/neurons.safetensors
    """
    from lape_ds.neurons.neuron_set import NeuronSet

    found = NeuronSet.load(_neurons_file(neurons))
    everything = found.num_layers * found.neurons_per_layer
    experts = f" in {found.experts_per_layer} experts" if found.experts_per_layer > 1 else ""
    typer.echo(
        f"{found.model_id}: {found.num_layers} layers x {found.neurons_per_layer} neurons{experts}, {found.method}"
    )
    for code in found.languages:
        per_layer = " ".join(str(len(layer)) for layer in found.per_layer(code))
        number = found.num_neurons(code)
        typer.echo(f"{code:10} {number:8,} ({100 * number / everything:.3f} %)  per layer: {per_layer}")


@neurons_app.command("overlap")
def overlap_neurons(neurons: NeuronsArgument) -> None:
    """Jaccard similarity of every pair of languages.

    Example: lape-ds neurons overlap recipes/quickstart.yaml
    """
    from lape_ds.neurons.neuron_set import NeuronSet

    found = NeuronSet.load(_neurons_file(neurons))
    typer.echo(f"{'':10}" + "".join(f"{code:>10}" for code in found.languages))
    for first in found.languages:
        row = "".join(f"{found.jaccard(first, second):10.3f}" for second in found.languages)
        typer.echo(f"{first:10}{row}")


@neurons_app.command("import")
def import_neurons(
    published: Annotated[Path, typer.Argument(metavar="FILE.pth", help="A published list[language][layer].")],
    output: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The neuron set to write.")],
    languages: Annotated[str, typer.Option(help="In the file's order, comma-separated.")],
    neurons_per_layer: Annotated[
        int, typer.Option(min=1, help="The model's intermediate_size (x its experts).")
    ],
    model: Annotated[str, typer.Option(help="Hub id or folder of the model that the set is of.")],
    fingerprint: Annotated[
        bool, typer.Option(help="Record the fingerprint of its weights (downloads a hub model).")
    ] = True,
) -> None:
    """Turn a published .pth into a neuron set.

    Example: lape-ds neurons import llama.pth out.safetensors --languages mt,af,is --neurons-per-layer 14336
    --model meta-llama/Llama-3.1-8B
    """
    from lape_ds.languages import find_language
    from lape_ds.model import loading
    from lape_ds.neurons.formats import import_published

    codes = [find_language(text).code for text in listed(languages)]
    weights = loading.fingerprint(loading.resolve_model(model)) if fingerprint else ""
    found = import_published(
        published, codes, neurons_per_layer=neurons_per_layer, model_id=model, model_fingerprint=weights
    )
    found.save(output)
    typer.echo(", ".join(f"{code} {found.num_neurons(code):,}" for code in found.languages))


@neurons_app.command("export")
def export_neurons(
    neurons: NeuronsArgument,
    output: Annotated[Path, typer.Argument(metavar="FILE.pth", help="The published format to write.")],
) -> None:
    """Turn a neuron set into a published-style .pth.

    Example: lape-ds neurons export recipes/quickstart.yaml neurons.pth
    """
    from lape_ds.neurons.formats import export_published
    from lape_ds.neurons.neuron_set import NeuronSet

    found = NeuronSet.load(_neurons_file(neurons))
    export_published(found, output)
    typer.echo(f"languages in order: {','.join(found.languages)}")


ShapeOption = Annotated[
    str | None,
    typer.Option(help="cpu-100m, llama-3.1-8b or mistral-nemo-12b; by default what the machine can hold."),
]
RoundsOption = Annotated[int, typer.Option(min=1, help="Counted rounds; two more go before them.")]
SeedOption = Annotated[int, typer.Option(help="Of weights, tokens, neurons and orders.")]
OutOption = Annotated[
    Path, typer.Option(metavar="FILE.json", help="The record; its Markdown table goes beside it.")
]


@bench_app.command("train")
def bench_train(
    shape: ShapeOption = None,
    neurons: Annotated[str, typer.Option(help="uniform-1%, or mt: Maltese as published.")] = "uniform-1%",
    methods: Annotated[str | None, typer.Option(help="Comma-separated; all if not given.")] = None,
    rounds: RoundsOption = 12,
    seed: SeedOption = 0,
    out: OutOption = Path("bench-train.json"),
) -> None:
    """Time a whole training step of every method in interleaved rounds, and tell what each keeps in memory.

    Example: lape-ds bench train --neurons mt --out mt.json
    """
    from lape_ds.bench.tables import show
    from lape_ds.bench.train import bench_train

    show(bench_train(shape, neurons=neurons, methods=listed(methods), rounds=rounds, seed=seed, out=out))


@bench_app.command("identify")
def bench_identify(
    shape: ShapeOption = None,
    rounds: RoundsOption = 8,
    seed: SeedOption = 0,
    out: OutOption = Path("bench-identify.json"),
) -> None:
    """Time counting beside a bare forward pass and a plain loop with hooks.

    Example: lape-ds bench identify --out identify.json
    """
    from lape_ds.bench.identify import bench_identify
    from lape_ds.bench.tables import show

    show(bench_identify(shape, rounds=rounds, seed=seed, out=out))


def _neurons_file(target: str) -> Path:
    if target.endswith(".safetensors"):
        return Path(target)
    loaded = _load(target, None)
    return loaded.train.neurons or loaded.identify_dir / "neurons.safetensors"


if __name__ == "__main__":
    main()
