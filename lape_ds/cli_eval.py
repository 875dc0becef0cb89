"""`lape-ds prefetch`, `eval` and `compare`: before a training what it will read, after it what it has gained and lost.

Beside cli.py, which has the other commands.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lape_ds.cli_arguments import OverridesArgument, RecipeArgument, listed

if TYPE_CHECKING:
    from lape_ds.evaluation.suites import Suite


def add_eval_commands(app: typer.Typer) -> None:
    """Adds them to the app."""
    app.command("prefetch")(prefetch)
    app.command("eval")(evaluate)
    app.command("suites")(suites)
    app.command("compare")(compare)


def prefetch(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Bring all that a recipe's stages read to a node with a network, for nodes without one.

    The model, the text of every language (packed), the data and metrics of the suites; each is then looked for as it will be
    without a network. Tells size, place and what to set on those nodes. What the recipe's `env` says of HF_HUB_OFFLINE does not
    count here.

    Example: lape-ds prefetch recipes/mistral-nemo-12b.yaml eval.suite=[monolingual,general]
    """
    from lape_ds.corpora.hub import OFFLINE_VARIABLES
    from lape_ds.recipe import load_recipe
    from lape_ds.recipe.environment import enter_environment

    loaded = load_recipe(recipe, overrides or [])
    enter_environment({name: value for name, value in loaded.env.items() if name not in OFFLINE_VARIABLES})
    from lape_ds.evaluation.command import prefetch_recipe
    from lape_ds.evaluation.request import EvalRequest

    prefetch_recipe(EvalRequest(targets=[recipe], overrides=overrides or []), loaded)


def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE|RUN|PACK|MODEL... [KEY=VALUE]...",
            help="What to measure side by side: recipes (base and runs), run folders, packs, model folders or hub ids.",
            show_default=False,
        ),
    ],
    suite: Annotated[
        str | None, typer.Option(help="Comma-separated names or paths; the recipe's if not given.")
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, for suites without a list of their own; the recipe's if not given."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Where results go.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Requests at a time.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents per task.")] = None,
    backend: Annotated[
        Literal["hf", "vllm"] | None, typer.Option(help="What computes; the recipe's, or hf.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="Of the weights; the recipe's, or that of the model's config.json."),
    ] = None,
    prefetch: Annotated[
        bool, typer.Option("--prefetch", help="Bring models and data from the hub, and measure nothing.")
    ] = False,
) -> None:
    """Measure base and trained models side by side with lm-eval.

    On all GPUs, or `launch.num_ranks` ranks.

    Example: lape-ds eval recipes/quickstart.yaml --languages mlt,eng
    """
    from lape_ds.evaluation.request import EvalRequest, run_evaluation

    overrides = [text for text in targets if "=" in text and not Path(text).exists()]
    code = run_evaluation(
        EvalRequest(
            targets=[text for text in targets if text not in overrides],
            overrides=overrides,
            suites=listed(suite),
            languages=listed(languages),
            output_dir=output,
            batch_size=batch_size,
            limit=limit,
            backend=backend,
            dtype=dtype,
            prefetch=prefetch,
        )
    )
    if code:
        raise SystemExit(code)


def suites(
    name: Annotated[
        str | None, typer.Argument(help="Name or path; all shipped ones if not given.", show_default=False)
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(help="Comma-separated; which tasks there are in each, what is left out and why."),
    ] = None,
) -> None:
    """List suites, or a suite's tasks and languages.

    A file of your own is checked as `lape-ds eval` would: exit code 2 where lm-eval lacks a task or metric in it.

    Example: lape-ds suites monolingual --languages mlt,cym
    """
    from lape_ds.evaluation.listing import list_languages, list_suites, list_tasks
    from lape_ds.evaluation.suites import load_suite, suite_names

    if name is None:
        lines = list_suites()
    else:
        suite = load_suite(name)
        lines = list_tasks(suite) if languages is None else list_languages(suite, listed(languages))
        lines = [*lines, *_checked(suite, listed(languages))] if name not in suite_names() else lines
    for line in lines:
        typer.echo(line)


def _checked(suite: Suite, languages: list[str]) -> list[str]:
    """What is to be said of a suite of the user's own; shipped ones are tested."""
    from lape_ds.evaluation.checking import check_planned, check_suite  # needs the harness: seconds
    from lape_ds.evaluation.suites import NothingToRun, plan

    if not languages:
        return check_suite(suite)
    with suppress(NothingToRun):  # as the list says
        check_planned(plan(suite, languages))
    return []


def compare(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="BASE RUN...",
            help="Folders that `lape-ds eval` has written, or runs or recipes that it has measured; the first is the base.",
            show_default=False,
        ),
    ],
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tables.")] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a line for every task and model.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything.")] = None,
) -> None:
    """Tell what models gained and lost against a base.

    Paired differences with intervals, from the samples of `lape-ds eval`.

    Example: lape-ds compare runs/quickstart/eval/base runs/quickstart/eval/subnetwork --markdown compared.md
    """
    from lape_ds.evaluation.comparing.command import compare_command

    compare_command(targets, markdown_file=markdown, csv_file=csv, json_file=json)
