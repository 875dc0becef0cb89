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
from pathlib import Path
from typing import Any, TypeVar

from lape_ds.errors import UserError
from lape_ds.evaluation.suites import PlannedTask

Models = Mapping[str, tuple[str, str | None]]  # label -> folder or hub id, revision
Value = TypeVar("Value")


def prefetch(models: Models, planned: Sequence[PlannedTask]) -> None:
    """Brings models, tokenizers, the tasks' data and sacrebleu's model, and prints a line for each.

    A failure is told and the rest goes on. In the end a process that may not use the hub asks for all of it again, because
    `datasets` does not find everything that it has fetched without a network (5.2: not what a task names by `data_files` or
    `data_dir`). With HF_HUB_OFFLINE set this only tells what is there.

    Args:
        models: Label -> (folder or hub id, revision).
        planned: Tasks.

    Raises:
        UserError: Something is missing at the end.
    """
    from huggingface_hub import constants

    advice = "mend what is told above and give the command again"
    missing = _fetch(models, planned)
    if constants.HF_HUB_OFFLINE:
        advice = "HF_HUB_OFFLINE is set, so that nothing was fetched; unset it where there is a network"
    elif not missing:
        missing = [name for name, fault in _ask_without_network(models, planned) if _told(name, fault)]
        advice = "they came, but are not found without a network: use local files, or evaluate with a network"
    if missing:
        raise UserError(
            f"{len(missing)} of what this evaluation needs {'are' if len(missing) > 1 else 'is'} missing: {advice}"
        )
    print(
        f"all is there; set HF_HUB_OFFLINE=1 to evaluate without a network, where the same HF_HOME ({constants.HF_HOME}) is seen"
    )


def _fetch(models: Models, planned: Sequence[PlannedTask]) -> list[str]:
    """Asks the hub for each thing and tells what came; returns what failed."""
    _quiet(bars=sys.stderr.isatty())
    missing: list[str] = []
    before = _cached_bytes()
    for name, fault in _ask(models, planned):
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


def _ask(models: Models, planned: Sequence[PlannedTask]) -> Iterator[tuple[str, str | None]]:
    """Each thing's name, and what is wrong with it or None, once it has been asked for."""
    for label, (path, revision) in models.items():
        at = f" at {revision}" if revision else ""
        yield f"model {label} ({path}{at})", _tried(_load_tokenizer, path, revision)[1]
    metrics: set[str] = set()
    for one in planned:
        found, fault = _tried(_metrics, one)
        metrics.update(found or ())
        yield f"data of {one.name}", fault
    if any("spbleu" in metric.lower() for metric in metrics):
        yield "sacrebleu's flores200 model (spBLEU)", _tried(_load_spbleu_model)[1]


def _tried(ask: Callable[..., Value], *arguments: Any) -> tuple[Value | None, str | None]:
    """What comes of a call, and the user's error in one line."""
    try:
        return ask(*arguments), None
    except UserError as error:
        return None, " ".join(str(error).split())


def _load_tokenizer(path: str, revision: str | None) -> None:
    """Of a model, whose other files come with it."""
    from lape_ds.model.loading import load_tokenizer, resolve_model  # needs torch, which data does not

    load_tokenizer(resolve_model(path, revision))


def _metrics(planned: PlannedTask) -> list[str]:
    """Of a task, which is built with its data."""
    from lape_ds.evaluation.tasks import build_task

    return list(build_task(planned).higher_is_better() or {})


def _load_spbleu_model() -> None:
    """The SentencePiece model, which sacrebleu fetches by itself, without a checksum.

    Raises:
        UserError: It is not there and cannot be fetched, or is damaged.
    """
    from huggingface_hub import constants
    from sacrebleu.tokenizers import tokenizer_spm

    url = tokenizer_spm.SPM_MODELS["flores200"]["url"]
    path = _spbleu_folder() / url.rpartition("/")[2]
    mend = f"fetch {url} where there is a network and put it at {path}"
    if constants.HF_HUB_OFFLINE and not path.is_file():
        raise UserError(f"not at {path}: {mend}")
    try:
        tokenizer_spm.Flores200Tokenizer()
    except (OSError, RuntimeError) as error:
        what = f"{path} is no SentencePiece model; delete it" if path.is_file() else f"it did not come ({error})"
        raise UserError(f"{what}: {mend}") from error


def _ask_without_network(models: Models, planned: Sequence[PlannedTask]) -> list[tuple[str, str | None]]:
    """The same in a process that may not use the hub."""
    child = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps((models, planned)),
        stdout=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    return json.loads(child.stdout)


def _cached_bytes() -> int:
    """Of all that has come from a network so far."""
    from datasets import config
    from huggingface_hub import constants

    files = [*Path(constants.HF_HUB_CACHE).glob("*/blobs/*"), *_spbleu_folder().glob("*")]
    files += Path(config.DOWNLOADED_DATASETS_PATH).glob("*")
    return sum(path.stat().st_size for path in files if path.is_file())


def _spbleu_folder() -> Path:
    from sacrebleu.utils import SACREBLEU_DIR

    return Path(SACREBLEU_DIR) / "models"


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
    models, planned = pickle.load(sys.stdin.buffer)
    print(json.dumps(list(_ask(models, planned))))


if __name__ == "__main__":
    _main()
