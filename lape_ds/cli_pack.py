"""`lape-ds pack …`: language packs, what a training changed without the rest of the model.

Beside cli.py, which has the other commands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lape_ds.cli_arguments import OverridesArgument, RunArgument, listed, run_folder

if TYPE_CHECKING:
    from lape_ds.subnetwork.pack import Pack

PackArgument = Annotated[Path, typer.Argument(metavar="PACK", help="pack.safetensors.", show_default=False)]
FolderOutArgument = Annotated[
    Path, typer.Argument(metavar="OUT_FOLDER", help="The model folder to write.", show_default=False)
]


def add_pack_commands(app: typer.Typer) -> None:
    """Adds them to the app."""
    pack_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    app.add_typer(pack_app, name="pack", help="Language packs: trained neurons without the rest.")
    pack_app.command("make")(make_pack)
    pack_app.command("diff")(diff_pack)
    pack_app.command("apply")(apply_pack)
    pack_app.command("revert")(revert_pack)
    pack_app.command("compose")(compose_packs)
    pack_app.command("show")(show_pack)
    pack_app.command("card")(write_card)


def make_pack(
    run: RunArgument,
    overrides: OverridesArgument = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The file to write; RUN/pack.safetensors (pack-CODE of one language) if not given."
        ),
    ] = None,
    checkpoint: Annotated[Literal["best", "last"], typer.Option(help="Which weights.")] = "best",
    language: Annotated[
        str | None, typer.Option(help="Of several trained together, only this one's neurons.")
    ] = None,
) -> None:
    """Write the trained neurons of a run as a language pack: with its base, exactly the exported model.

    Example: lape-ds pack make runs/quickstart/train/subnetwork
    """
    from lape_ds.languages import find_language
    from lape_ds.training.pack_of_run import pack_of_run

    run_dir = run_folder(run, overrides)
    code = None if language is None else find_language(language).code
    path = output or run_dir / ("pack.safetensors" if code is None else f"pack-{code}.safetensors")
    _check_replaceable(path)
    pack = pack_of_run(run_dir, checkpoint, language=code)
    _save(pack, path)
    if "shared_neurons" in pack.origin:
        others = [other for other in pack.origin["trained_together"] if other not in pack.languages]
        typer.echo(
            f"trained together with {', '.join(others) or 'no other'}: {pack.origin['shared_neurons']:,} of its neurons are "
            "theirs too, and are in the pack as the common training left them"
        )


def diff_pack(
    base: Annotated[
        str,
        typer.Argument(metavar="BASE", help="The model trained from: folder or hub id.", show_default=False),
    ],
    trained: Annotated[
        Path, typer.Argument(metavar="TRAINED_FOLDER", help="What became of it.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The pack to write.", show_default=False)],
    languages: Annotated[
        str | None, typer.Option(help="What was trained, comma-separated: any codes or English names.")
    ] = None,
) -> None:
    """Write the difference of two model folders as a language pack, if only feed-forward neurons differ.

    Example: lape-ds pack diff models/base models/maltese pack.safetensors --languages mt
    """
    from lape_ds.languages import find_language
    from lape_ds.model.loading import resolve_model
    from lape_ds.training.pack_folders import difference

    codes = [find_language(name).code for name in listed(languages)]
    _check_replaceable(output)
    folders = resolve_model(base), resolve_model(str(trained.absolute()))
    _save(difference(*folders, base_model=base, languages=codes), output)


def apply_pack(
    pack: PackArgument,
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The pack's base: folder or hub id.", show_default=False)
    ],
    output: FolderOutArgument,
) -> None:
    """Write base and pack as a plain Hugging Face folder: the exported model, byte for byte.

    Example: lape-ds pack apply pack.safetensors models/base models/maltese
    """
    from lape_ds.model.loading import resolve_model
    from lape_ds.subnetwork.pack import Pack
    from lape_ds.training.pack_folders import apply_to_folder

    loaded = Pack.load(pack)
    done = apply_to_folder(loaded, resolve_model(base, loaded.base_revision), output)
    typer.echo(
        f"{output}: {loaded.title} is in; {done.changed:,} weights of its {len(loaded.neurons):,} neurons differ from the base, "
        "every other bit is the base's"
    )


def revert_pack(
    pack: PackArgument,
    model: Annotated[
        Path, typer.Argument(metavar="MODEL_FOLDER", help="The model that holds it.", show_default=False)
    ],
    output: FolderOutArgument,
) -> None:
    """Take a pack out of a model folder again: the base, bit for bit.

    Example: lape-ds pack revert pack.safetensors models/maltese models/base-again
    """
    from lape_ds.model.loading import resolve_model
    from lape_ds.subnetwork.pack import Pack
    from lape_ds.training.pack_folders import revert_in_folder

    loaded = Pack.load(pack)
    done = revert_in_folder(loaded, resolve_model(str(model.absolute())), output)
    whole = (
        "all weights are those of its base, by their fingerprint"
        if done.is_base
        else f"its neurons are the base's again; the whole is not the base's file for file: that is stored in another dtype than "
        f"{loaded.dtype}, or the model holds other changes too"
    )
    typer.echo(f"{output}: {loaded.title} is out; {done.changed:,} weights were put back; {whole}")


def compose_packs(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PACK PACK… OUT", help="Packs of one base, and last the one to write.", show_default=False
        ),
    ],
    shared: Annotated[
        Literal["refuse", "first", "mean-of-changes"],
        typer.Option(help="For neurons in several packs: as in the first, or base + mean of the changes."),
    ] = "refuse",
) -> None:
    """Put several languages' packs into one: exact where they are disjoint, by a rule where they share neurons.

    Example: lape-ds pack compose mt.safetensors cy.safetensors both.safetensors --shared mean-of-changes
    """
    from lape_ds.subnetwork.composing import compose
    from lape_ds.subnetwork.pack import Pack

    *sources, output = paths
    _check_replaceable(output)
    found = compose([Pack.load(path) for path in sources], shared=shared)
    _save(found.pack, output)
    typer.echo(found.report)


def show_pack(
    path: PackArgument, *, as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False
) -> None:
    """Show what a pack holds: languages, base, neurons per layer, size, where it is from.

    Example: lape-ds pack show pack.safetensors
    """
    from lape_ds.subnetwork.pack import Pack

    pack = Pack.load(path)
    facts = {
        "languages": list(pack.languages),
        "base_model": pack.base_model,
        "base_revision": pack.base_revision,
        "base_fingerprint": pack.base_fingerprint,
        "dtype": pack.dtype,
        "neurons": len(pack.neurons),
        "neurons_per_layer": {layer: len(pack.index(layer)) for layer in pack.new},
        "weights": pack.num_entries,
        "bytes": path.stat().st_size,
        "origin": dict(pack.origin),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    per_layer = "  ".join(f"{layer}:{number:,}" for layer, number in facts["neurons_per_layer"].items())
    for name, value in {**facts, "neurons_per_layer": per_layer, "languages": pack.title}.items():
        if value is not None:
            shown = (
                f"{value:,}"
                if isinstance(value, int)
                else json.dumps(value)
                if isinstance(value, dict)
                else value
            )
            typer.echo(f"{name.replace('_', ' '):18} {shown}")


def write_card(
    path: PackArgument,
    run: Annotated[
        Path | None,
        typer.Option(help="The run it was made of; by default the folder in which it lies, if that is one."),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(
            help="As the hub names it, e.g. apache-2.0; by default the base folder's own, if it says one."
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="README.md beside the pack if not given.")] = None,
) -> None:
    """Write a pack's model card for the hub: what it is, data, recipe, results, licence, how to use it.

    Example: lape-ds pack card hub/pack.safetensors --run runs/quickstart/train/subnetwork
    """
    from lape_ds.analysis.pack_card import write_pack_card

    target = output or path.parent / "README.md"
    write_pack_card(path, target, run_dir=run, licence=licence)
    typer.echo(str(target))


def _check_replaceable(path: Path) -> None:
    """A file that is there is replaced only if it is a pack."""
    from lape_ds.neurons.artefact import read_metadata
    from lape_ds.subnetwork.pack import COMMAND, KIND, SCHEMA_VERSION

    if path.exists():
        read_metadata(path, kind=KIND, schema_version=SCHEMA_VERSION, command=COMMAND)


def _save(pack: Pack, path: Path) -> None:
    pack.save(path)
    typer.echo(
        f"{path}: {len(pack.neurons):,} neurons in {len(pack.new)} layers, {pack.num_entries:,} weights of "
        f"{pack.title} and what {pack.base_model} has there; {path.stat().st_size:,} bytes"
    )
