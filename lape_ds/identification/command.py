"""What `lape-ds identify` was asked, for whichever processes do it.

Between the command line and the stage, which needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from lape_ds.distributed.divided import DividedStage, run_divided
from lape_ds.recipe import Recipe, load_recipe


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
        stopped="while counting; what is counted is kept, the same command goes on",
    )
    return run_divided(stage)


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
