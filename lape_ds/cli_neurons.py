"""`lape-ds neurons …`: looking at neuron sets, and taking them in and out.

Beside cli.py, which has the other commands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from lape_ds.cli_arguments import OverridesArgument, RecipeArgument, listed, load
from lape_ds.errors import UserError

neurons_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

NeuronsArgument = Annotated[
    str,
    typer.Argument(
        metavar="SET", help="A neurons.safetensors, or a recipe that has one.", show_default=False
    ),
]

PictureOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also draw it: a name that ends in .png or .svg.")
]
JSONOption = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


@neurons_app.command("show")
def show_neurons(
    neurons: NeuronsArgument, picture: PictureOption = None, as_json: JSONOption = False
) -> None:
    """How many neurons each language has, and where.

    Example: lape-ds neurons show runs/quickstart/identify/neurons.safetensors --picture layers.png
    """
    from lape_ds.analysis.neurons.overlap import Layers
    from lape_ds.neurons.neuron_set import NeuronSet

    layers = Layers.of(NeuronSet.load(_neurons_file(neurons)))
    typer.echo(json.dumps(layers.as_json(), indent=2) if as_json else "\n".join(layers.lines()))
    if picture is not None:
        from lape_ds.analysis.neurons.pictures import draw_layers, write_picture

        write_picture(draw_layers(layers), picture)


@neurons_app.command("overlap")
def overlap_neurons(
    neurons: NeuronsArgument,
    by: Annotated[Literal["language", "family"], typer.Option(help="What is compared.")] = "language",
    picture: PictureOption = None,
    as_json: JSONOption = False,
) -> None:
    """Jaccard similarity of every pair of languages, or of families; of more than 20 the text shows the nearest.

    Example: lape-ds neurons overlap recipes/quickstart.yaml --by family --picture overlap.svg
    """
    from lape_ds.analysis.neurons.overlap import Overlap
    from lape_ds.neurons.neuron_set import NeuronSet

    found = NeuronSet.load(_neurons_file(neurons))
    overlap = Overlap.of_languages(found) if by == "language" else Overlap.of_families(found)
    typer.echo(json.dumps(overlap.as_json(), indent=2) if as_json else "\n".join(overlap.lines()))
    if picture is not None:
        from lape_ds.analysis.neurons.pictures import draw_overlap, write_picture

        write_picture(draw_overlap(overlap, title=f"Shared neurons, {found.model_id}"), picture)


@neurons_app.command("script-check")
def check_script(
    native: NeuronsArgument,
    romanised: Annotated[
        str,
        typer.Argument(
            metavar="ROMANISED",
            help="The set of a second identification, of which the language's source had `romanise: true`.",
            show_default=False,
        ),
    ],
    language: Annotated[str, typer.Option(help="The language whose text was romanised.")],
    as_json: JSONOption = False,
) -> None:
    """Does a language's set follow the language, or its script? Its set against that of its romanised copy.

    Example: lape-ds neurons script-check runs/a/identify/neurons.safetensors runs/b/identify/neurons.safetensors --language ka
    """
    from lape_ds.analysis.neurons.script_check import check_script
    from lape_ds.languages import find_language
    from lape_ds.neurons.neuron_set import NeuronSet

    sets = [NeuronSet.load(_neurons_file(path)) for path in (native, romanised)]
    check = check_script(*sets, language=find_language(language).code)
    typer.echo(json.dumps(check.as_json(), indent=2) if as_json else "\n".join(check.lines()))


@neurons_app.command("ablate")
def ablate_neurons(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    languages: Annotated[
        str | None, typer.Option(help="Who takes part, comma-separated; all of the neuron set if not given.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Held-out tokens of each, instead of train.heldout.tokens_per_language."),
    ] = None,
    random: Annotated[int, typer.Option(min=1, help="Random sets of each language.")] = 3,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder to write; OUTPUT_DIR/ablation if not given."),
    ] = None,
    picture: PictureOption = None,
) -> None:
    """Switch off each language's neurons, and controls of the same size, and measure every language's held-out text.

    Stopped anywhere, the same command goes on. Writes ablation.json, ablation.png and a file for each set.

    Example: lape-ds neurons ablate recipes/quickstart.yaml --languages mt,is,ka,ne --tokens 3000
    """
    loaded = load(recipe, overrides)
    from lape_ds.analysis.neurons.ablation import report_ablation
    from lape_ds.analysis.neurons.pictures import check_picture
    from lape_ds.identification.ablation import ablate

    if picture is not None:
        check_picture(picture)  # before hours of measuring
    folder = output or loaded.output_dir / "ablation"
    measured = ablate(
        loaded,
        languages=listed(languages),
        tokens_per_language=tokens,
        num_random=random,
        output_dir=folder,
    )
    report_ablation(measured, folder, picture=picture)
    typer.echo(f"written to {folder / 'ablation.json'} and ablation.png")


@neurons_app.command("import")
def import_neurons(
    published: Annotated[Path, typer.Argument(metavar="FILE.pth", help="A published list[language][layer].")],
    output: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The neuron set to write.")],
    languages: Annotated[
        str | None,
        typer.Option(help="In the file's order, comma-separated; known for the nine published files."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Hub id or folder of the model that the set is of; its shape is compared. Known as above."
        ),
    ] = None,
    neurons_per_layer: Annotated[
        int | None, typer.Option(min=1, help="intermediate_size (x experts); by default as the model has it.")
    ] = None,
    fingerprint: Annotated[
        bool, typer.Option(help="Record the fingerprint of --model's weights (downloads a hub model).")
    ] = True,
) -> None:
    """Turn a published .pth into a neuron set. Nothing in the file is run.

    Example: lape-ds neurons import llama-3.1-5 out.safetensors

    Another file: lape-ds neurons import my.pth out.safetensors --languages mt,af,is --model models/my-llama
    """
    from lape_ds.neurons.published import import_file

    found = import_file(
        published,
        languages=listed(languages),
        model=model,
        neurons_per_layer=neurons_per_layer,
        with_fingerprint=fingerprint,
    )
    found.save(output)
    typer.echo(
        f"{found.model_id}: " + ", ".join(f"{code} {found.num_neurons(code):,}" for code in found.languages)
    )


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


@neurons_app.command("merge")
def merge_neurons(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="COUNTS COUNTS… OUT",
            help="Files of counts, or folders of them, and last the file or folder to write.",
            show_default=False,
        ),
    ],
) -> None:
    """Add up the counts of several clusters, or of several parts of a corpus; unlike settings are refused.

    Example: lape-ds neurons merge a/identify/counts b/identify/counts merged
    """
    from lape_ds.neurons.merging import merge_counts

    for merged in merge_counts(paths[:-1], paths[-1]):
        typer.echo(f"{merged.language:10} {merged.num_tokens:14,} tokens of {merged.num_files} files")


@neurons_app.command("select")
def select_neurons(
    recipe: RecipeArgument,
    counts: Annotated[Path, typer.Argument(metavar="COUNTS", help="A folder of counts.", show_default=False)],
    output: Annotated[
        Path, typer.Argument(metavar="OUT.safetensors", help="The neuron set to write.", show_default=False)
    ],
    overrides: OverridesArgument = None,
) -> None:
    """Select neurons, as a recipe says, from counts that lie elsewhere, e.g. merged ones; needs neither model nor text.

    Example: lape-ds neurons select recipes/llama-3.1-8b.yaml merged neurons.safetensors identify.method=family_lape
    """
    loaded = load(recipe, overrides, for_counts_alone=True)
    from lape_ds.neurons.selection import select_from_folder

    found = select_from_folder(loaded, counts)
    found.save(output)
    typer.echo(", ".join(f"{code} {found.num_neurons(code):,}" for code in found.languages))


@neurons_app.command("stability")
def show_stability(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|COUNTS",
            help="A recipe that was identified, or a folder of counts (published knobs, unless overridden).",
            show_default=False,
        ),
    ],
    overrides: OverridesArgument = None,
    picture: PictureOption = None,
    as_json: JSONOption = False,
) -> None:
    """How sure the sets are: agreement over ever more text, and a bootstrap over documents; from counts, without the model.

    Example: lape-ds neurons stability recipes/quickstart.yaml --picture stability.png

    Counts alone: lape-ds neurons stability merged identify.top_rate=0.01
    """
    from lape_ds.analysis.neurons.stability_tables import knob_lines, stability_lines
    from lape_ds.neurons.selection import counts_files
    from lape_ds.neurons.stability import measure_files

    paths = sorted(Path(target).glob("*.safetensors"))
    without_recipe = bool(paths)
    if without_recipe:
        from lape_ds.recipe import identify_section

        section, seed = identify_section([path.stem for path in paths], overrides or []), 0
    else:
        loaded = load(target, overrides, for_counts_alone=True)
        section, seed = loaded.identify, loaded.seed
        paths = counts_files(loaded, loaded.identify_dir / "counts")
    stability = measure_files(section, paths, seed=seed)
    lines = [*stability_lines(stability), *knob_lines(section, without_recipe=without_recipe)]
    typer.echo(json.dumps(stability.as_json(), indent=2) if as_json else "\n".join(lines))
    if picture is not None:
        from lape_ds.analysis.neurons.pictures import write_picture
        from lape_ds.analysis.neurons.stability_pictures import draw_stability

        write_picture(draw_stability(stability), picture)


def _neurons_file(target: str) -> Path:
    if target.endswith(".safetensors"):
        return Path(target)
    if Path(target).is_file() and Path(target).suffix not in (".yaml", ".yml"):
        raise UserError(f"{target} is neither a neuron set (.safetensors) nor a recipe (.yaml)")
    loaded = load(target, None)
    return loaded.train.neurons or loaded.identify_dir / "neurons.safetensors"
