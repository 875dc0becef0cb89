"""What `lape-ds identify` was asked, for whichever processes do it.

Between the command line and the stage, which needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from lape_ds.distributed.divided import DividedStage, run_divided
from lape_ds.identification.sections import count_sections, holds_counts
from lape_ds.model.folder import check_made, folder_here
from lape_ds.recipe import Recipe, check_frozen, load_recipe


def run_identification(recipe_path: str, overrides: Sequence[str]) -> int:
    """Counts and selects, with as many ranks as there are GPUs here, `launch.num_ranks` says or a launcher has started.

    Returns:
        The exit code.

    Raises:
        UserError: What is asked cannot be done. Of ranks, one tells it and all end.
    """
    stage = DividedStage(
        name="identify",
        words=[recipe_path, *overrides],
        load=lambda: load_recipe(recipe_path, overrides),
        work=_work,
        is_divided=lambda _: True,
        stopped=_stopped,
        check=_check,
    )
    return run_divided(stage)


def _stopped(recipe: Recipe | None) -> str:
    if recipe is None or not holds_counts(recipe.counting_dir):
        return "before anything was counted; the same command goes on"
    return "while counting; what is counted is kept, the same command goes on"


def _check(recipe: Recipe | None) -> None:
    """Raises UserError for what a rank would refuse only after it has started, which takes long."""
    assert recipe is not None
    check_frozen(recipe, recipe.counting_dir, sections=count_sections(recipe))
    check_made(recipe)
    folder_here(recipe.model.path)


def _work(recipe: Recipe | None) -> int:
    assert recipe is not None
    from lape_ds.distributed import ranks
    from lape_ds.identification.stage import count_part, write_neurons

    if recipe.identify.part is not None:
        count_part(recipe)
    else:
        write_neurons(recipe)
        if ranks.rank() == 0:
            print(f"written to {recipe.identify_dir / 'neurons.safetensors'}")
    ranks.end()
    return 0
