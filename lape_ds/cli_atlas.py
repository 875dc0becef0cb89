"""`lape-ds atlas`: identification, ablation and everything known of the neurons in one folder, ready for the hub.

Beside cli.py, which has the other commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lape_ds.cli_arguments import OverridesArgument, RecipeArgument, load
from lape_ds.errors import UserError

if TYPE_CHECKING:
    from lape_ds.recipe import Recipe


def add_atlas_command(app: typer.Typer) -> None:
    """Adds the command to `lape-ds`."""
    app.command("atlas")(make_atlas)


def make_atlas(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    counts: Annotated[
        bool, typer.Option(help="Copy the counts into the folder (29 MB a language of an 8B model).")
    ] = True,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Upload the folder to the hub when it is whole.")
    ] = None,
    private: Annotated[
        bool,
        typer.Option("--private", help="Only for you: refused where the repository is there and public."),
    ] = False,
) -> None:
    """Identify, switch off and publish: neuron sets, counts, stability, overlap, ablation and a model card in one folder.

    What is there already of this recipe is kept; interrupted, the same command goes on.

    Example: lape-ds atlas recipes/atlas.yaml

    Publish it: lape-ds atlas recipes/atlas.yaml atlas.license=cc-by-4.0 --push USER/NAME --private
    """
    loaded = load(recipe, overrides)
    from lape_ds.distributed.divided import is_started_as_rank

    if is_started_as_rank():
        raise UserError(
            "lape-ds atlas is one process, which starts ranks itself; under srun or torchrun let `lape-ds identify` count, then "
            "run `lape-ds atlas` alone: it finds the counts"
        )
    _check_recipe(loaded)
    from lape_ds.atlas.push import check_push, push_atlas

    if push is not None:
        if loaded.atlas.license is None:
            raise UserError(
                f"--push {push}: atlas.license is not set; name the licence under which you publish, as the hub does, "
                "e.g. atlas.license=cc-by-4.0"
            )
        check_push(push, private=private)
    elif private:
        raise UserError("--private: nothing is pushed; give --push USER/NAME too")
    from lape_ds.analysis.neurons.ablation import report_ablation
    from lape_ds.atlas.folder import write_atlas
    from lape_ds.identification.ablation import ablate
    from lape_ds.identification.command import run_identification

    code = run_identification(recipe, overrides or [])
    if code:
        raise SystemExit(code)
    ablation = ablate(
        loaded,
        languages=loaded.atlas.ablate,
        num_random=loaded.atlas.num_random,
        neurons=loaded.identify_dir / "neurons.safetensors",  # train.neurons may be another set
    )
    report_ablation(ablation, loaded.output_dir / "ablation")
    folder = write_atlas(loaded, with_counts=counts)
    typer.echo(f"written to {folder}")
    if push is not None:
        typer.echo(f"pushed to {push_atlas(folder, push, private=private)}")


def _check_recipe(recipe: Recipe) -> None:
    """That the recipe makes what an atlas is made of, and where it can be written, before hours of counting.

    Raises:
        UserError: It does not, or a folder is of another recipe or of something else.
    """
    identify = recipe.identify
    if identify.method == "mean_activation":
        raise UserError(
            "identify.method: mean_activation has no stability, which an atlas tells; allowed: lape, family_lape, probability"
        )
    if identify.part is not None:
        raise UserError(
            f"identify.part: {identify.part} counts a part and selects no neurons; count the parts with `lape-ds identify`, "
            "merge them, then run `lape-ds atlas` without it"
        )
    if identify.zero_stage == 3:
        raise UserError(
            "identify.zero_stage: 3 is for a model that does not fit one GPU, and the atlas's ablation loads it whole; set 0"
        )
    from lape_ds.atlas.push import ATLAS_MARKER
    from lape_ds.identification.sections import ABLATION_SECTIONS
    from lape_ds.recipe import check_frozen
    from lape_ds.writing import check_replaceable

    check_frozen(recipe, recipe.output_dir / "ablation", sections=ABLATION_SECTIONS)
    check_replaceable(recipe.atlas_dir, marker_files=(ATLAS_MARKER,))
