"""A recipe file and overrides → a validated `Recipe`; each refusal is one line: key, place, what is allowed.

The entry of every stage. Then `freezing.py` keeps the recipe in the run folder.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lape_ds.errors import UserError
from lape_ds.languages import find_language
from lape_ds.recipe.sections import FilesSource, HubSource, IdentifySection, Recipe
from lape_ds.recipe.source_text import KeyPath, SourceText, read_yaml
from lape_ds.resources import asset, has_asset

Model = TypeVar("Model", bound=BaseModel)


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, for_counts_alone: bool = False) -> Recipe:
    """Loads, overrides and validates a recipe.

    Args:
        path: A YAML file, a folder holding `recipe.yaml`, or a shipped recipe (`recipes/quickstart.yaml`).
        overrides: `key=value` each, the key dotted, the value YAML: `train.optimizer.learning_rate=1e-4`.
        for_counts_alone: What the recipe says is done with counts that are there: its texts may be elsewhere, as those of a
            published recipe are.

    Raises:
        UserError: A bad file, key, value or combination; or a file named in it is not there.
    """
    source = read_yaml(recipe_file(Path(path)))
    if isinstance(source.data, dict) and "recipes" in source.data:
        raise UserError(
            f"{path} is a matrix file, of several recipes: `lape-ds matrix run {path}`, or name one of its recipes"
        )
    for override in overrides:
        source.set_key(override)
    recipe = validate(source)
    if not for_counts_alone:
        _check_files(recipe, source)
    return recipe


def derived_recipe(path: str | Path, settings: Mapping[str, Any], *, origin: str) -> Recipe:
    """A recipe as another file changes it.

    Args:
        path: As `load_recipe` takes it.
        settings: Dotted key -> plain value.
        origin: Where these are from, for messages.

    Raises:
        UserError: As of `load_recipe`.
    """
    source = read_yaml(recipe_file(Path(path)))
    for key, value in settings.items():
        source.put(key.split("."), value, origin=f"{origin}: {key}")
    recipe = validate(source)
    _check_files(recipe, source)
    return recipe


def identify_section(codes: Sequence[str], overrides: Sequence[str]) -> IdentifySection:
    """`identify` of a recipe that says nothing but these languages: the published knobs, as far as they are not overridden.

    Args:
        codes: Two or more languages.
        overrides: As `load_recipe` takes them, e.g. `identify.top_rate=0.01`.

    Raises:
        UserError: A bad key, value or combination.
    """
    data = {
        "name": "counts",
        "output_dir": "counts",
        "languages": {"target": codes[0], "identify": list(codes)},
        "model": {"path": "counts"},
        "corpus": {"source": {"kind": "cldr"}},
    }
    source = SourceText(data, {(): "counts without a recipe"})
    for override in overrides:
        source.set_key(override)
    return validate(source).identify


def validate(source: SourceText) -> Recipe:
    """Checks data against the recipe's sections; no file but the recipe's own is looked at.

    Raises:
        UserError: The first thing that is wrong, in one line.
    """
    return validate_as(Recipe, source)


def validate_as(model: type[Model], source: SourceText) -> Model:
    """Checks data against the sections of a recipe, or of another kind of file.

    Raises:
        UserError: The first thing that is wrong, in one line.
    """
    try:
        # Through JSON: only there do strict types (no "2" for 2, no true for 1) still take lists and paths.
        return model.model_validate_json(json.dumps(source.data), strict=True)
    except ValidationError as error:
        raise UserError(_one_line(error, source, model)) from None


def recipe_file(path: Path) -> Path:
    """The file that a path given to `load_recipe` means."""
    if path.is_dir() and (path / "recipe.yaml").is_file():
        return path / "recipe.yaml"
    if not path.exists() and not path.is_absolute() and has_asset(str(path)):
        return asset(str(path))
    return path


def _one_line(error: ValidationError, source: SourceText, model: type[BaseModel]) -> str:
    """`key: what is wrong, what is allowed (file:line)`."""
    errors = error.errors(include_url=False)
    # A misspelt key comes first: it often makes another one missing.
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    keys = _written_keys(first["loc"], source.data)
    dotted = ".".join(map(str, keys)) or "recipe"
    if first["type"] == "extra_forbidden":
        what = _unknown_key(keys, source, model)
    elif first["type"] == "missing":
        what = "must be given"
    elif first["type"] == "value_error":
        what = str(first["ctx"]["error"])  # type: ignore[typeddict-item]
        if not keys:  # between sections: the message itself begins with its key
            dotted, _, what = what.partition(": ")
            keys = tuple(dotted.split("."))
    else:
        # A union reports one error for each of its types.
        alike = [one for one in errors if _written_keys(one["loc"], source.data) == keys]
        wanted = " or ".join(dict.fromkeys(_expectation(one) for one in alike))
        what = f"{wanted}, not {_shown(first['input'])}"
        if any(one["type"] == "list_type" for one in alike) and isinstance(first["input"], str):
            what += f"; write [{first['input']}]"
    return f"{dotted}: {what} ({source.place(keys)})"


def _written_keys(loc: tuple[str | int, ...], data: Any) -> KeyPath:
    """Pydantic's location -> the keys as the user wrote them (it also names union members and dict keys)."""
    keys: list[str | int] = []
    for index, part in enumerate(loc):
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)
        if inside:
            data = cast("Any", data)[part]
        elif index < len(loc) - 1 or not isinstance(data, dict) or part == "[key]":
            continue
        keys.append(part)
    return tuple(keys)


def _expectation(error: ErrorDetails) -> str:
    message = error["msg"].removeprefix("Input ").removeprefix("should ")
    return f"must {message}" if message.startswith("be") else error["msg"][0].lower() + error["msg"][1:]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _unknown_key(keys: KeyPath, source: SourceText, model: type[BaseModel]) -> str:
    """Names the nearest key of this section, else of any other."""
    *parents, last = keys
    allowed = _section_keys(parents, source.data, model)
    near = difflib.get_close_matches(str(last), allowed, n=1)
    if near:
        nearest = ".".join(map(str, [*parents, near[0]]))
    else:
        everywhere = [dotted for dotted in _all_keys(model) if dotted.rpartition(".")[2] == last]
        nearest = min(everywhere, key=lambda dotted: dotted.count("."), default="")
    hint = f"did you mean {nearest}? " if nearest else ""
    return f"unknown key; {hint}allowed here: {', '.join(allowed)}"


def _section_keys(parents: Sequence[str | int], data: Any, model: type[BaseModel]) -> list[str]:
    """The keys of the section at `parents`; for a source, those of its kind."""
    models: list[type[BaseModel]] = [model]
    for part in parents:
        fields = [model.model_fields[str(part)] for model in models if str(part) in model.model_fields]
        annotations = [field.annotation for field in fields]
        # Below a mapping by language, or in a list, the key is free: the section stays.
        models = [found for annotation in annotations for found in _models_in(annotation)] or models
        data = data[part]
    kind = data.get("kind") if isinstance(data, dict) else None
    of_kind = [m for m in models if kind in get_args(m.model_fields["kind"].annotation)] if kind else []
    return list((of_kind or models)[0].model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = [f"{prefix}{name}" for name in model.model_fields]
    for name, field in model.model_fields.items():
        for child in _models_in(field.annotation):
            keys += _all_keys(child, f"{prefix}{name}.")
    return keys


def _check_files(recipe: Recipe, source: SourceText) -> None:
    """What the recipe names must be there, for every language: files and data set configs. Where it writes, no file may be."""

    def refuse(keys: KeyPath, what: str) -> None:
        raise UserError(f"{'.'.join(map(str, keys))}: {what} ({source.place(keys)})")

    above = (recipe.output_dir, *recipe.output_dir.absolute().parents)
    if file := next((path for path in above if os.path.isfile(path)), None):
        refuse(("output_dir",), f"{file} is a file, so no folder can be made there or below it")
    if recipe.train.neurons is not None and not recipe.train.neurons.is_file():
        refuse(("train", "neurons"), f"no such file {recipe.train.neurons}")
    written = {find_language(key).code: key for key in source.data["corpus"].get("per_language") or {}}
    for code in recipe.all_languages():
        language, text = find_language(code), recipe.corpus.source_of(code)
        keys = ("corpus", "per_language", written[code]) if code in written else ("corpus", "source")
        if isinstance(text, FilesSource):
            try:
                file = Path(language.fill(text.path))
            except UserError as error:
                refuse((*keys, "path"), str(error))
            else:
                if not file.exists():
                    refuse((*keys, "path"), f"no file or folder {file} for {code}")
        elif isinstance(text, HubSource):
            try:
                language.fill(text.config or "")
            except UserError as error:
                refuse((*keys, "config"), str(error))
        elif language.cldr is None:
            refuse((*keys, "kind"), f"CLDR has no locale for {code} ({language.name})")
