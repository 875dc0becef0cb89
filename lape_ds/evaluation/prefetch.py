"""`lape-ds prefetch` and `lape-ds eval --prefetch`: all that is read from a network, brought before the GPUs are booked.

Beside the evaluation room's way: it asks for models, text and tasks by the very calls that the stages make, so that there is
no list of what they need.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase

from lape_ds.corpora.hub import offline_by
from lape_ds.errors import UserError
from lape_ds.evaluation.suites import PlannedTask
from lape_ds.recipe import Recipe
from lape_ds.writing import told_if_unwritable

Value = TypeVar("Value")


class _Needs(NamedTuple):
    """As the arguments of `prefetch`."""

    models: Mapping[str, tuple[str, str | None]]
    planned: Sequence[PlannedTask]
    recipe: Recipe | None
    output_dir: Path
    stages: bool = False


class _Asked(NamedTuple):
    """A thing that has been asked for: what is wrong with it, or None, and where it lies, if that is a place of its own."""

    name: str
    fault: str | None
    place: str | None = None


def prefetch(
    models: Mapping[str, tuple[str, str | None]],
    planned: Sequence[PlannedTask],
    *,
    recipe: Recipe | None,
    output_dir: Path,
    stages: bool = False,
) -> None:
    """Brings models, tokenizers, text, the tasks' data and sacrebleu's model, and prints a line for each.

    A failure is told and the rest goes on. In the end a process that may not use the hub asks for all of it again, because
    `datasets` does not find everything that it has fetched without a network (5.2: not what a task names by `data_files` or
    `data_dir`). With HF_HUB_OFFLINE set this only tells what is there.

    Args:
        models: Label -> (folder or hub id, revision).
        planned: Tasks.
        recipe: Whose corpus is held out and whose local copies stand in for data sets.
        output_dir: Of the results; the held-out text goes there.
        stages: Also what the recipe's other stages read: its model, and its text, which is packed.

    Raises:
        UserError: Something is missing at the end.
    """
    from huggingface_hub import constants

    needs = _Needs(models, planned, recipe, output_dir, stages)
    advice = "mend what is told above and give the command again"
    missing = _fetch(needs)
    if (variable := offline_by()) is not None:
        advice = f"{variable} is set, so that nothing was fetched; unset it where there is a network"
    elif constants.is_offline_mode():
        advice = "the hub does not answer, so that nothing was fetched; give the command again where there is a network"
    else:  # the rest is looked for again, whatever is missing
        lost = [one.name for one in _ask_without_network(needs) if one.name not in missing and _told(one)]
        if lost:
            advice = "what came is not found without a network: use local files, or run this where there is a network"
        missing += lost
    if not missing or not constants.is_offline_mode():
        _tell_settings(needs, whole=not missing)
    if missing:
        raise UserError(
            f"{len(missing)} {'things are' if len(missing) > 1 else 'thing is'} missing: {advice}"
        )


def _tell_settings(needs: _Needs, *, whole: bool) -> None:
    """What nodes without a network must see, how large it is, and what to set there."""
    from huggingface_hub import constants

    variables = {"HF_HUB_OFFLINE": "1", "HF_HOME": constants.HF_HOME}
    moved = ("HF_HUB_CACHE", "HF_DATASETS_CACHE")  # out of HF_HOME, by the user
    variables |= {name: os.environ[name] for name in moved if name in os.environ}
    if _spbleu_folder().is_dir():
        variables["SACREBLEU"] = str(_spbleu_folder().parent)
    caches = _size(sum(map(_bytes_of, _cache_folders())))
    what = "all is there" if whole else "what is not told as missing is there"
    print(f"{what}, also without a network: {caches} in {constants.HF_HOME}", end="")
    if needs.recipe is not None and (text := sum(map(_bytes_of, _text_folders(needs)))):
        print(f", {_size(text)} of packed text in {needs.recipe.corpus_dir}", end="")
    inner = ", ".join(f"{name}: {value}" for name, value in variables.items())
    print(
        f"\non nodes without one: export {' '.join(f'{name}={value}' for name, value in variables.items())}"
    )
    print(f"or in the recipe, from where it reaches every host: env: {{ {inner} }}", flush=True)


def _fetch(needs: _Needs) -> list[str]:
    """Asks the hub for each thing and tells what came; returns what failed."""
    _quiet(bars=sys.stderr.isatty())
    missing: list[str] = []
    before = _kept_bytes(needs)
    for one in _ask(needs):
        after = _kept_bytes(needs)
        if _told(one):
            missing.append(one.name)
        else:
            came = f"fetched {_size(after - before)}" if after > before else "there already"
            print(f"{one.name}: {came}{'; ' + one.place if one.place else ''}", flush=True)
        before = after
    return missing


def _told(one: _Asked) -> bool:
    """Whether there was a fault, which is then printed."""
    if one.fault is not None:
        print(f"{one.name}: MISSING, {one.fault}", flush=True)
    return one.fault is not None


def _ask(needs: _Needs) -> Iterator[_Asked]:
    """Each thing, once it has been asked for."""
    from lape_ds.evaluation.heldout import with_heldout  # needs torch
    from lape_ds.evaluation.tasks import build_task

    for label, (path, revision) in needs.models.items():
        at = f" at {revision}" if revision else ""
        place, fault = _tried(_bring_model, path, revision)
        yield _Asked(f"model {label} ({path}{at})", fault, place)
    if needs.stages and needs.recipe is not None:
        yield from _ask_for_stages(needs.recipe)
    # A task is built with all its splits, and with sacrebleu's model where it is scored by spBLEU.
    build = partial(build_task, datasets=needs.recipe.eval.datasets if needs.recipe else {})
    for one in needs.planned:
        with_text, fault = _tried(with_heldout, [one], needs.recipe, needs.output_dir)
        if with_text == []:
            continue  # the recipe has no text of this language, as a warning has told
        yield _Asked(f"data of {one.name}", fault or _tried(build, *(with_text or []))[1])


def _ask_for_stages(recipe: Recipe) -> Iterator[_Asked]:
    """The recipe's model, and the text of each language, which only the model's tokenizer can pack."""
    from lape_ds.evaluation.hub_access import ask_hub
    from lape_ds.model.loading import load_tokenizer, recipe_model

    revision = recipe.model.revision
    place, fault = _tried(_bring_recipe_model, recipe)
    yield _Asked(f"model {recipe.model.path}{f' at {revision}' if revision else ''}", fault, place)
    if fault is not None:
        yield _Asked("text", "it is packed by the model's tokenizer")
        return
    tokenizer = load_tokenizer(recipe_model(recipe))
    for code in recipe.all_languages():
        if recipe.corpus.source_of(code).kind == "hub":
            ask_hub()
        place, fault = _tried(_pack_text, recipe, tokenizer, code)
        if place or fault:
            yield _Asked(f"text of {code}", fault, place)
    if recipe.corpus.source.kind != "cldr":
        yield _Asked("parallel sentences (lape-ds analyze)", _tried(_bring_parallel, recipe)[1])


def _tried(ask: Callable[..., Value], *arguments: Any) -> tuple[Value | None, str | None]:
    """What a call gives, or the user's error in one line."""
    try:
        return ask(*arguments), None
    except UserError as error:
        return None, " ".join(str(error).split())


def _bring_model(path: str, revision: str | None) -> str:
    """Of a model the tokenizer, whose other files come with it; told is where they lie."""
    from lape_ds.evaluation.hub_access import ask_hub_for_model
    from lape_ds.model.loading import load_tokenizer, resolve_model
    from lape_ds.model.weights import checkpoint_files

    ask_hub_for_model(path)
    folder = resolve_model(path, revision)
    load_tokenizer(folder)
    # Where somebody has asked for the config alone, the hub's cache has a folder without weights.
    size = sum(file.stat().st_size for file in checkpoint_files(folder))
    pin = (
        f", pin it by model.revision={folder.name}"
        if folder.parent.name == "snapshots" and not revision
        else ""
    )
    return f"{_size(size)} of weights in {folder}{pin}"


def _bring_recipe_model(recipe: Recipe) -> str:
    """As `_bring_model`; one that the other stages could not use is refused."""
    from lape_ds.model.loading import load_skeleton, recipe_model
    from lape_ds.model.shape import model_shape

    if recipe.model.create is not None:
        recipe_model(recipe)  # refuses one that is not made yet
    told = _bring_model(recipe.model.path, recipe.model.revision)
    model_shape(load_skeleton(recipe_model(recipe)))
    return told


def _pack_text(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, code: str) -> str | None:
    """Told is how much text of a language there is, and where; None: no stage reads it."""
    from lape_ds.training.texts import text_of_stages

    with told_if_unwritable(str(recipe.corpus_dir), kept="what is packed"):
        corpus = text_of_stages(recipe, tokenizer, code)
    if corpus is None:
        return None
    return f"{corpus.train.num_tokens:,} tokens in {recipe.corpus_dir / code / corpus.fingerprint}"


def _bring_parallel(recipe: Recipe) -> None:
    """What languages are aligned by, of all that an analysis may compare."""
    from lape_ds.evaluation.data_sources import is_local
    from lape_ds.evaluation.hub_access import ask_hub
    from lape_ds.evaluation.public_documents import FLORES, flores_sentences
    from lape_ds.languages import find_language

    dataset = recipe.eval.datasets.get(FLORES, FLORES)
    if not is_local(dataset):
        ask_hub()
    for language in map(find_language, dict.fromkeys(["eng_Latn", *recipe.all_languages()])):
        if language.flores is not None:
            flores_sentences(language, dataset, ["dev"], task="alignment")


def _ask_without_network(needs: _Needs) -> list[_Asked]:
    """The same in a process that may not use the hub."""
    child = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps(needs),
        stdout=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    return [_Asked(*one) for one in json.loads(child.stdout)]


def _kept_bytes(needs: _Needs) -> int:
    """Of all that has come from a network or was packed so far."""
    return sum(map(_bytes_of, [*_cache_folders(), *_text_folders(needs)]))


def _cache_folders() -> list[Path]:
    from datasets import config
    from huggingface_hub import constants

    own = [_spbleu_folder(), Path(config.DOWNLOADED_DATASETS_PATH)]
    return [*Path(constants.HF_HUB_CACHE).glob("*/blobs"), *own]


def _text_folders(needs: _Needs) -> list[Path]:
    return list(needs.recipe.corpus_dir.glob("*/*")) if needs.stages and needs.recipe else []


def _spbleu_folder() -> Path:
    from sacrebleu.utils import SACREBLEU_DIR

    return Path(SACREBLEU_DIR) / "models"


def _bytes_of(folder: Path) -> int:
    return _folder_bytes(folder, folder.stat().st_mtime_ns) if folder.is_dir() else 0


@cache
def _folder_bytes(folder: Path, _changed: int) -> int:
    """Of a folder's files, looked at again once one came: a cache holds thousands, on a slow disk."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _size(num_bytes: int) -> str:
    """With three digits, in a unit that fits."""
    size = float(num_bytes)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _quiet(*, bars: bool) -> None:
    """Silences what is said of every task and data set, and unless they are wanted the bars, which would fill a log."""
    import datasets
    import huggingface_hub

    datasets.logging.set_verbosity_error()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if not bars:
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()


def _main() -> None:
    """The process without a network: what to ask for on stdin, its answers on stdout."""
    _quiet(bars=False)
    logging.disable(logging.WARNING)  # heard before
    with redirect_stdout(sys.stderr):  # whatever data sets and metrics print meanwhile
        answers = list(_ask(pickle.load(sys.stdin.buffer)))
    print(json.dumps(answers))


if __name__ == "__main__":
    _main()
