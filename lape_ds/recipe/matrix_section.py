"""A matrix file: models × languages × methods, expanded into ordinary recipes.

After loading, beside the sweep that each of its recipes has: `lape-ds matrix` runs them, and anyone can by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from lape_ds.errors import UserError
from lape_ds.recipe.base import NAME, Section
from lape_ds.recipe.fields import LanguageCodes
from lape_ds.recipe.freezing import to_yaml
from lape_ds.recipe.loading import derived_recipe, recipe_file, validate, validate_as
from lape_ds.recipe.sections import EvalSection, Recipe
from lape_ds.recipe.source_text import SourceText, read_yaml
from lape_ds.recipe.sweep_runs import SweepRun, sweep_runs
from lape_ds.recipe.sweep_section import SweepSection
from lape_ds.writing import write_text

# What the matrix itself says of each recipe.
_SET_BY_MATRIX = (
    "name",
    "output_dir",
    "languages.target",
    "train.neurons",
    "corpus.cache_dir",
    "sweep",
    "eval",
)


def _keys_are_free(settings: dict[str, Any]) -> dict[str, Any]:
    for key in settings:
        if taken := next((own for own in _SET_BY_MATRIX if f"{key}.".startswith(f"{own}.")), None):
            raise ValueError(f"{key} cannot be set here: {taken} is given by the matrix")
    return settings


def _distinct(recipes: list[str]) -> list[str]:
    if len(set(recipes)) < len(recipes):
        raise ValueError(f"a recipe is given twice: {', '.join(recipes)}")
    return recipes


def _keeping_tuned(sweep: SweepSection) -> SweepSection:
    """Unless the file says otherwise, the checkpoints of each variant's tuned rate stay."""
    silent = "keep_checkpoints" not in sweep.model_fields_set
    return sweep.model_copy(update={"keep_checkpoints": "tuned"}) if silent else sweep


class MatrixSection(Section):
    """The whole of a matrix file. Example: recipes/paper/quickstart.yaml."""

    name: str = Field(pattern=f"^{NAME}$")
    output_dir: Path
    recipes: Annotated[list[str], AfterValidator(_distinct)] = Field(min_length=1)  # one per model
    languages: LanguageCodes = Field(min_length=1)  # each is the target once
    # Of every recipe: dotted key -> value, e.g. {train.tokens: 100_000_000}.
    set: Annotated[dict[str, Any], AfterValidator(_keys_are_free)] = {}
    sweep: Annotated[SweepSection, AfterValidator(_keeping_tuned)] = SweepSection(
        keep_checkpoints="tuned"
    )  # the methods, as in a recipe
    eval: EvalSection | None = None  # None: only held-out text is measured, during training
    keep_models: bool = False  # the tuned runs' exported models, which can be made again from the checkpoints

    @model_validator(mode="after")
    def _tuned_runs_can_be_exported(self) -> MatrixSection:
        if self.eval is not None and self.sweep.keep_checkpoints is False:
            raise ValueError(
                "sweep.keep_checkpoints: false leaves nothing for eval to measure; set tuned or true, or remove eval"
            )
        return self


@dataclass(frozen=True)
class MatrixLanguage:
    """One language of one model: a sweep, and what is measured of its tuned runs.

    Attributes:
        model: The model's name in the matrix.
        code: Of the language.
        recipe: Its recipe, with the sweep.
    """

    model: str
    code: str
    recipe: Recipe

    @cached_property
    def runs(self) -> list[SweepRun]:
        """Of the sweep."""
        return sweep_runs(self.recipe)

    @property
    def folder(self) -> Path:
        """Where all of it lies."""
        return self.recipe.output_dir

    @property
    def recipe_file(self) -> Path:
        """The recipe as it is written."""
        return self.folder / "recipe.yaml"

    @property
    def variants(self) -> list[str]:
        """Of the sweep, in its order."""
        return list(dict.fromkeys(run.variant for run in self.runs))

    def runs_of(self, variant: str) -> list[SweepRun]:
        """A variant's."""
        return [run for run in self.runs if run.variant == variant]


@dataclass(frozen=True)
class MatrixModel:
    """One model of the matrix.

    Attributes:
        name: Of its recipe.
        recipe: By which its model is made, if it is, and its neurons identified, once for all languages.
        languages: Of the matrix, in its order.
    """

    name: str
    recipe: Recipe
    languages: tuple[MatrixLanguage, ...]

    @property
    def recipe_file(self) -> Path:
        """The recipe as it is written."""
        return self.recipe.output_dir / "recipe.yaml"


@dataclass(frozen=True)
class Matrix:
    """A matrix file and what it stands for.

    Attributes:
        section: What the file says.
        models: One per recipe.
    """

    section: MatrixSection
    models: tuple[MatrixModel, ...]

    @property
    def output_dir(self) -> Path:
        """Where all of it lies."""
        return self.section.output_dir

    @property
    def languages(self) -> list[MatrixLanguage]:
        """Every language of every model: the units of work, numbered so in a job array."""
        return [language for model in self.models for language in model.languages]

    def write_recipes(self) -> None:
        """Writes `<model>/recipe.yaml` and `<model>/<language>/recipe.yaml`, so that each stage can be run by hand too."""
        for model in self.models:
            for written in (model, *model.languages):
                write_text(written.recipe_file, to_yaml(written.recipe))


def load_matrix(path: str | Path, overrides: Sequence[str] = ()) -> Matrix:
    """Loads a matrix file and expands it.

    Args:
        path: Of the file, or a shipped one (`recipes/paper/quickstart.yaml`).
        overrides: `key=value` each, of the matrix's own keys.

    Raises:
        UserError: A bad file, key, value or combination, there or in a recipe that it names.
    """
    file = recipe_file(Path(path))
    source = read_yaml(file)
    if isinstance(source.data, dict) and "model" in source.data and "recipes" not in source.data:
        raise UserError(
            f"{path} is a recipe; a matrix file names several (`recipes:`), e.g. recipes/paper/quickstart.yaml"
        )
    for override in overrides:
        source.set_key(override)
    section = validate_as(MatrixSection, source)
    models = tuple(_model(section, recipe, str(file)) for recipe in section.recipes)
    names = [model.name for model in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(
            f"recipes: two are named {twice}; give one another name ({source.place(('recipes',))})"
        )
    return Matrix(section, models)


def _model(section: MatrixSection, path: str, file: str) -> MatrixModel:
    as_it_is = derived_recipe(path, {}, origin=file)
    folder = section.output_dir / as_it_is.name
    settings: dict[str, Any] = {
        **section.set,
        "output_dir": str(folder),
        "languages.target": section.languages[0],
        "corpus.cache_dir": str(folder / "corpus"),
        "train.neurons": None,
        "sweep": section.sweep.model_dump(mode="json"),
    }
    if section.eval is not None:
        settings["eval"] = section.eval.model_dump(mode="json")
    if as_it_is.model.create is not None:  # a model of the matrix's own
        settings.setdefault("model.path", str(folder / "base"))
    recipe = derived_recipe(path, settings, origin=f"{file}: {path}")
    missing = [code for code in section.languages if code not in recipe.languages.identify]
    if missing:
        raise UserError(
            f"languages: {missing[0]} has no neurons in {path}, whose languages.identify does not name it; add it there, or in "
            f"set: {{languages.identify: […]}} ({file})"
        )
    languages = tuple(_language(recipe, code, place=f"{file}: {path}, {code}") for code in section.languages)
    assert languages[0].runs  # what a variant sets is checked before anything starts
    return MatrixModel(recipe.name, recipe, languages)


def _language(recipe: Recipe, code: str, *, place: str) -> MatrixLanguage:
    """Its recipe is the model's, but for the target; text and neurons stay where the model's are."""
    folder = recipe.output_dir / code
    data = recipe.model_dump(mode="json")
    data |= {"name": f"{recipe.name}-{code}", "output_dir": str(folder)}
    data["languages"]["target"] = code
    data["train"]["neurons"] = str(recipe.identify_dir / "neurons.safetensors")
    derived = validate(SourceText(data, {(): place}))
    return MatrixLanguage(recipe.name, code, derived)
