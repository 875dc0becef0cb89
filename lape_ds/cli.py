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
from lape_ds.cli_analysis import add_analysis_commands
from lape_ds.cli_arguments import OverridesArgument, RecipeArgument, RunArgument, load, run_folder
from lape_ds.cli_atlas import add_atlas_command
from lape_ds.cli_bench import bench_app
from lape_ds.cli_eval import add_eval_commands
from lape_ds.cli_matrix import matrix_app
from lape_ds.cli_neurons import neurons_app
from lape_ds.cli_pack import add_pack_commands
from lape_ds.cli_plan import add_plan_commands
from lape_ds.cli_report import add_report_command
from lape_ds.errors import UserError, tell_error
from lape_ds.noise import quiet_deepspeed

if TYPE_CHECKING:
    from lape_ds.recipe import TokenBudget

app = typer.Typer(
    name="lape-ds",
    help="Find the neurons of one language and fine-tune only those, under DeepSpeed.\n\n"
    "The way: pretrain (quickstart only), corpus, identify, train, export, eval, summary; sweep to compare "
    "methods, matrix for models and languages too; plan and tune before a training; atlas for the neurons of many languages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
        _refuse(f"{message} ({_hint(message)})")
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted; the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `lape-ds languages | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code or 0)


def _is_spare() -> bool:
    """Whether srun or torchrun has started this process beside a first one, for a stage that takes one."""
    return _process_number() > 0 and sys.argv[1:2] not in (["train"], ["identify"], ["eval"])


def _process_number() -> int:
    from lape_ds.distributed.launchers.slurm import process_number

    return process_number()


def _hint(message: str) -> str:
    """Where to look after a mistake on the command line."""
    if sys.argv[1:2] == ["identify"] and "--push" in message:
        return "`lape-ds atlas RECIPE --push USER/NAME` identifies and publishes"
    return "see `lape-ds --help`"


def _refuse(message: str) -> None:
    tell_error(message)
    sys.exit(2)


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
    load(recipe, overrides)  # a bad one is refused before anything heavy is imported
    from lape_ds.training.pretrain import pretrain

    pretrain(recipe, overrides or [])


@app.command()
def corpus(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Read, tokenise and pack the text of the identified and the trained languages, once.

    Example: lape-ds corpus recipes/llama-3.1-8b.yaml corpus.cache_dir=packed
    """
    loaded = load(recipe, overrides)
    from lape_ds.corpora.prepare import identified_corpora, prepare_corpora
    from lape_ds.model.loading import load_tokenizer, recipe_model

    tokenizer = load_tokenizer(recipe_model(loaded))
    # Packing to a second budget goes on where the first ended.
    trained: dict[str, TokenBudget] = dict.fromkeys(loaded.trained_languages, loaded.train.tokens)
    wanted = {
        "identify.tokens_per_language": lambda: identified_corpora(
            loaded, tokenizer, loaded.languages.identify
        ),
        "train.tokens": lambda: prepare_corpora(loaded, tokenizer, trained, train_tokens=trained),
    }
    for key, pack in wanted.items():
        for code, text in pack().items():
            tokens, heldout = text.train.num_tokens, text.heldout.num_tokens
            typer.echo(f"{key} {code}: {tokens:,} tokens packed, {heldout:,} held out")


@app.command()
def identify(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Count p(gate > 0) for every language and select each language's neurons; on all GPUs, or `launch.num_ranks` ranks.

    Example: lape-ds identify recipes/llama-3.1-8b.yaml identify.top_rate=0.01
    """
    from lape_ds.identification.command import run_identification

    code = run_identification(recipe, overrides or [])
    if code:
        raise SystemExit(code)


@app.command()
def train(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Train under DeepSpeed, as launch/train.sh does; goes on from the last checkpoint.

    Example: lape-ds train recipes/llama-3.1-8b.yaml train.method=random launch.num_ranks=8
    """
    load(recipe, overrides)
    from lape_ds.distributed.launch import launch_training

    launch_training(recipe, overrides or [])


@app.command()
def sweep(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Train every method at several learning rates and seeds, and draw what each gains and forgets.

    Example: lape-ds sweep recipes/quickstart.yaml sweep.seeds=[0,1,2]
    """
    loaded = load(recipe, overrides)
    from lape_ds.analysis.sweep.report import report_frontier
    from lape_ds.training.sweep_launch import launch_sweep

    launch_sweep(loaded, recipe, overrides or [])
    report_frontier(loaded)


@app.command()
def export(
    run: RunArgument,
    overrides: OverridesArgument = None,
    checkpoint: Annotated[Literal["best", "last"], typer.Option(help="Which weights.")] = "best",
    output: Annotated[Path | None, typer.Option(help="The folder to write; RUN/model if not given.")] = None,
) -> None:
    """Write the trained model as a plain Hugging Face folder and compare it with its base, bit for bit.

    Example: lape-ds export runs/quickstart/train/subnetwork
    """
    run_dir = run_folder(run, overrides)
    from lape_ds.training.export import export_model

    typer.echo(str(export_model(run_dir, checkpoint=checkpoint, folder=output)))


@app.command()
def summary(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Print what every exported run of a recipe measured before and after training.

    Example: lape-ds summary recipes/quickstart.yaml
    """
    from lape_ds.training.outcome import summarize

    summarize(load(recipe, overrides))


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
add_analysis_commands(app)
add_pack_commands(app)
add_atlas_command(app)
add_report_command(app)
app.add_typer(neurons_app, name="neurons", help="Look at, compare, import and export neuron sets.")
app.add_typer(
    matrix_app, name="matrix", help="Models x languages x methods from one file: the paper's table."
)
app.add_typer(bench_app, name="bench", help="Measure methods and counting side by side on this machine.")


if __name__ == "__main__":
    main()
