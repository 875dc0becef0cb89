"""What `lape-ds eval` was asked, and where it is done: in this process, by ranks that are started here, or as one of them.

Between the command line and the command. Needs neither torch nor the harness until it is known that this process measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lape_ds.distributed.divided import DividedStage, run_divided
from lape_ds.errors import UserError, tell_error
from lape_ds.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class EvalRequest:
    """The arguments of `lape-ds eval`.

    Attributes:
        targets: Recipes, run folders, models (folder or hub id).
        overrides: `key=value` for recipes and runs.
        suites: Names or paths; empty: the recipe's, or `quickstart`.
        languages: Any names, for suites that are for the recipe's; empty: those of the recipe.
        output_dir: Where results go; None: `eval/` in the recipe's output folder.
        batch_size: None: the recipe's, or 16.
        limit: Documents per task; None: the recipe's, or all.
        backend: None: the recipe's, or `hf`.
        dtype: None: the recipe's model's, or that of each model's config.json.
        prefetch: Bring models and data to this machine and measure nothing.
    """

    targets: Sequence[str]
    overrides: Sequence[str] = ()
    suites: Sequence[str] = ()
    languages: Sequence[str] = ()
    output_dir: Path | None = None
    batch_size: int | None = None
    limit: int | None = None
    backend: Literal["hf", "vllm"] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    prefetch: bool = False

    def recipe(self) -> Recipe | None:
        """The recipe that says where and how: of the first recipe or run that is named; None for models alone.

        Raises:
            UserError: It is not valid, or there is none and what it would say is not given.
        """
        for target in self.targets:
            if (path := recipe_path(target)) is not None:
                return load_recipe(path, self.overrides)
        if self.overrides:
            raise UserError(
                f"{self.overrides[0]} changes a recipe, and none is named: name a recipe or a run, or leave it out"
            )
        # A suite may have languages of its own; the one that is run if none is named has not.
        if not (self.languages or self.suites) or self.output_dir is None:
            raise UserError(
                "models alone say neither language nor output folder: give --languages (mlt,eng) and --output DIR"
            )
        return None

    def words(self) -> list[str]:
        """As words of a command line, which ask for the same."""
        options = {
            "--suite": ",".join(self.suites),
            "--languages": ",".join(self.languages),
            "--output": self.output_dir,
            "--batch-size": self.batch_size,
            "--limit": self.limit,
            "--backend": self.backend,
            "--dtype": self.dtype,
        }
        given = [word for name, value in options.items() if value for word in (name, str(value))]
        return [*self.targets, *self.overrides, *given, *(["--prefetch"] if self.prefetch else [])]


def recipe_path(target: str) -> Path | None:
    """The recipe that a target is, or that its run folder has; None for a model."""
    path = Path(target)
    if path.suffix in (".yaml", ".yml"):
        return path
    return path / "recipe.yaml" if (path / "recipe.yaml").is_file() else None


def run_evaluation(request: EvalRequest) -> int:
    """Does what is asked, with as many ranks as there are GPUs here, `launch.num_ranks` says or a launcher has started.

    Returns:
        The exit code.

    Raises:
        UserError: What is asked cannot be done. Of ranks, one tells it and all end.
    """
    stage = DividedStage(
        name="eval",
        words=request.words(),
        load=request.recipe,
        work=lambda _: _ask_or_answer(request),
        is_divided=lambda recipe: _backend(request, recipe) == "hf" and not request.prefetch,
        stopped=lambda _: "during the evaluation; finished tasks are kept, the same command goes on",
    )
    return run_divided(stage)


def _backend(request: EvalRequest, recipe: Recipe | None) -> str:
    return request.backend or ("hf" if recipe is None else recipe.eval.backend)


def _ask_or_answer(request: EvalRequest) -> int:
    """Asks, alone or as the first rank, or answers."""
    from lape_ds.distributed import ranks
    from lape_ds.evaluation.command import evaluate_command
    from lape_ds.evaluation.serving import TasksFailed, serve

    if ranks.rank() > 0:
        return 0 if request.prefetch else serve()
    try:
        evaluate_command(request)
    except TasksFailed as error:  # of which the others know: they leave in order
        tell_error(error)
        return 2
    return 0
