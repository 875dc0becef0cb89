"""`lape-ds eval --prefetch`: all that an evaluation reads from a network, brought before the GPUs are booked.

Beside the evaluation room's way: it asks for models and tasks by the very calls that the evaluation makes, so that there is
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
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lape_ds.corpora.hub import offline_by
from lape_ds.errors import UserError
from lape_ds.evaluation.suites import PlannedTask
from lape_ds.recipe import Recipe

Value = TypeVar("Value")


class _Needs(NamedTuple):
    """As the arguments of `prefetch`."""

    models: Mapping[str, tuple[str, str | None]]
    planned: Sequence[PlannedTask]
    recipe: Recipe | None
    output_dir: Path


def prefetch(
    models: Mapping[str, tuple[str, str | None]],
    planned: Sequence[PlannedTask],
    *,
    recipe: Recipe | None,
    output_dir: Path,
) -> None:
    """Brings models, tokenizers, the tasks' data, sacrebleu's model and held-out text, and prints a line for each.

    A failure is told and the rest goes on. In the end a process that may not use the hub asks for all of it again, because
    `datasets` does not find everything that it has fetched without a network (5.2: not what a task names by `data_files` or
    `data_dir`). With HF_HUB_OFFLINE set this only tells what is there.

    Args:
        models: Label -> (folder or hub id, revision).
        planned: Tasks.
        recipe: Whose corpus is held out and whose local copies stand in for data sets.
        output_dir: Of the results; the held-out text goes there.

    Raises:
        UserError: Something is missing at the end.
    """
    from huggingface_hub import constants

    needs = _Needs(models, planned, recipe, output_dir)
    advice = "mend what is told above and give the command again"
    missing = _fetch(needs)
    if (variable := offline_by()) is not None:
        advice = f"{variable} is set, so that nothing was fetched; unset it where there is a network"
    elif constants.is_offline_mode():
        advice = "the hub does not answer, so that nothing was fetched; give the command again where there is a network"
    elif not missing:
        missing = [name for name, fault in _ask_without_network(needs) if _told(name, fault)]
        advice = "they came, but are not found without a network: use local files, or evaluate with a network"
    if missing:
        raise UserError(
            f"{len(missing)} of what this evaluation needs {'are' if len(missing) > 1 else 'is'} missing: {advice}"
        )
    print(
        "all is there; without a network: HF_HUB_OFFLINE=1 lape-ds eval …, on nodes that see the same HF_HOME "
        f"({constants.HF_HOME}) and {_spbleu_folder().parent}"
    )


def _fetch(needs: _Needs) -> list[str]:
    """Asks the hub for each thing and tells what came; returns what failed."""
    _quiet(bars=sys.stderr.isatty())
    missing: list[str] = []
    before = _cached_bytes()
    for name, fault in _ask(needs):
        after = _cached_bytes()
        if _told(name, fault):
            missing.append(name)
        else:
            came = f"fetched {_size(after - before)}" if after > before else "there already"
            print(f"{name}: {came}", flush=True)
        before = after
    return missing


def _told(name: str, fault: str | None) -> bool:
    """Whether there was a fault, which is then printed."""
    if fault is not None:
        print(f"{name}: MISSING, {fault}", flush=True)
    return fault is not None


def _ask(needs: _Needs) -> Iterator[tuple[str, str | None]]:
    """Each thing's name, and what is wrong with it or None, once it has been asked for."""
    from lape_ds.evaluation.heldout import with_heldout  # needs torch
    from lape_ds.evaluation.tasks import build_task

    for label, (path, revision) in needs.models.items():
        at = f" at {revision}" if revision else ""
        yield f"model {label} ({path}{at})", _tried(_load_tokenizer, path, revision)[1]
    # A task is built with all its splits, and with sacrebleu's model where it is scored by spBLEU.
    build = partial(build_task, datasets=needs.recipe.eval.datasets if needs.recipe else {})
    for one in needs.planned:
        with_text, fault = _tried(with_heldout, [one], needs.recipe, needs.output_dir)
        if with_text == []:
            continue  # the recipe has no text of this language, as a warning has told
        yield f"data of {one.name}", fault or _tried(build, *(with_text or []))[1]


def _tried(ask: Callable[..., Value], *arguments: Any) -> tuple[Value | None, str | None]:
    """What a call gives, or the user's error in one line."""
    try:
        return ask(*arguments), None
    except UserError as error:
        return None, " ".join(str(error).split())


def _load_tokenizer(path: str, revision: str | None) -> None:
    """Of a model, whose other files come with it."""
    from lape_ds.evaluation.hub_access import ask_hub_for_model
    from lape_ds.model.loading import load_tokenizer, resolve_model

    ask_hub_for_model(path)
    load_tokenizer(resolve_model(path, revision))


def _ask_without_network(needs: _Needs) -> list[tuple[str, str | None]]:
    """The same in a process that may not use the hub."""
    child = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps(needs),
        stdout=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    return json.loads(child.stdout)


def _cached_bytes() -> int:
    """Of all that has come from a network so far."""
    from datasets import config
    from huggingface_hub import constants

    folders = [*Path(constants.HF_HUB_CACHE).glob("*/blobs"), _spbleu_folder()]
    folders.append(Path(config.DOWNLOADED_DATASETS_PATH))
    return sum(_folder_bytes(one, one.stat().st_mtime_ns) for one in folders if one.is_dir())


def _spbleu_folder() -> Path:
    from sacrebleu.utils import SACREBLEU_DIR

    return Path(SACREBLEU_DIR) / "models"


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
    print(json.dumps(list(_ask(pickle.load(sys.stdin.buffer)))))


if __name__ == "__main__":
    _main()
