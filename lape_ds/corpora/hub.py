"""Documents from any data set of the Hugging Face hub, streamed: nothing is downloaded but what is read.

First room on the data's way. A local folder in the hub's layout can stand in a data set's place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lape_ds.corpora.files import files_identity, fill_placeholders, text_of
from lape_ds.errors import NoText, UserError
from lape_ds.languages import Language
from lape_ds.recipe import HubSource

if TYPE_CHECKING:
    from datasets import DatasetBuilder, IterableDataset


OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


class HubUnreachable(UserError):
    """No network, or HF_HUB_OFFLINE: what was packed before may still be used.

    Attributes:
        dataset: Id of the data set that was asked for; empty where that is not known.
    """

    def __init__(self, text: str, dataset: str = "") -> None:
        super().__init__(text)
        self.dataset = dataset


@dataclass(frozen=True)
class HubItem:
    """A row's text or its problem, and the stream's state after it (plain JSON)."""

    text: str | None
    problem: str | None
    stream: dict[str, Any]


def hub_identity(source: HubSource, language: Language) -> Any:
    """The commits that the data set's files are of now; of a local folder, the state of its files.

    Raises:
        HubUnreachable: The hub cannot be asked.
        UserError: No such data set, config or split, or gated.
    """
    name = _name(source, language)
    with explained(name):
        files = dict(_builder_of(source, language).config.data_files or {})
    paths = sorted(
        str(path) for split, paths in files.items() if str(split) == source.split for path in paths
    )
    if not paths:
        splits = ", ".join(map(str, files)) or "none"
        raise UserError(
            f"corpus.source.split: hub data set {name} has no split {source.split!r}; it has {splits}"
        )
    commits = sorted({commit for path in paths for commit in re.findall(r"@([0-9a-f]{40})/", path)})
    if commits:
        return commits
    return files_identity([Path(path) for path in paths]) if all(map(os.path.exists, paths)) else paths


def read_hub(
    source: HubSource, language: Language, stream: dict[str, Any] | None = None
) -> Iterator[HubItem]:
    """Rows of a data set in its own order, on from an earlier item's `stream`.

    Raises:
        HubUnreachable: The hub cannot be reached.
        UserError: No such data set, config, split or column; gated; or its files are broken.
    """
    name = _name(source, language)
    with explained(name):
        builder = _builder_of(source, language)
        rows = cast("IterableDataset", builder.as_streaming_dataset(split=source.split))
        if stream is not None:
            rows.load_state_dict(stream)
        for number, row in enumerate(rows, start=1):
            if source.column not in row:
                raise UserError(
                    f"corpus.source.column: hub data set {name} has no column {source.column!r}; "
                    f"it has {', '.join(map(str, row))}; name one of these"
                )
            text, problem = text_of(row[source.column], source.column)
            where = f"hub data set {name}, {number} rows on from where reading began"
            yield HubItem(text, problem and f"{where}: {problem}", rows.state_dict())


def _builder_of(source: HubSource, language: Language) -> DatasetBuilder:
    try:
        return _builder(source.dataset, _config(source, language), source.revision)
    except ValueError as error:
        # A config that is named by the language is missing where there is no text; any other is a mistake.
        if "{" not in (source.config or "") or not str(error).startswith("BuilderConfig"):
            raise
        raise NoText(
            f"corpus.source.config: hub data set {_name(source, language)} has no such config: no text of {language.code}; "
            f"give corpus.per_language.{language.code} another source"
        ) from None


@lru_cache(maxsize=64)
def _builder(dataset: str, config: str | None, revision: str | None) -> DatasetBuilder:
    """Looks the data set up once per process: a handful of requests."""
    from datasets import load_dataset_builder

    return load_dataset_builder(dataset, config, revision=revision)


def _config(source: HubSource, language: Language) -> str | None:
    key = "corpus.source.config"
    return None if source.config is None else fill_placeholders(source.config, language, key=key)


def _name(source: HubSource, language: Language) -> str:
    config = _config(source, language)
    return source.dataset if config is None else f"{source.dataset} ({config})"


@contextmanager
def explained(name: str, *, key: str = "corpus.source.dataset") -> Iterator[None]:
    """Turns what `datasets` and the hub raise into one line that says what to do.

    Args:
        name: Of the data set; its id comes first.
        key: What the line begins with.

    Raises:
        UserError: Instead of those.
    """
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    # The hub's own bases name the transport's error, whichever HTTP library it uses (requests, httpx).
    transport = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    try:
        yield
    except UserError:
        raise
    except (DatasetsError, OSError, ValueError, RuntimeError, *transport) as error:
        raise _explain(name, error, key) from error


def _explain(name: str, error: Exception, key: str) -> UserError:
    """What one may do about an error of the hub."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import OfflineModeIsEnabled

    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    dataset = name.split(" ")[0]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, DatasetGenerationError) and isinstance(error.__cause__, Exception):
        return _explain(name, error.__cause__, key)  # it says no more than that there was one
    if "is a gated dataset" in reason or status in (401, 403):
        return UserError(
            f"{key}: hub data set {name} is gated or private: accept its terms at "
            f"https://huggingface.co/datasets/{dataset} and log in (`hf auth login`, or set HF_TOKEN)"
        )
    if isinstance(error, DatasetNotFoundError):
        return UserError(
            f"{key}: no hub data set {name} ({reason}): check its name and revision; "
            f"for a private one log in (`hf auth login`, or set HF_TOKEN)"
        )
    if isinstance(error, FileNotFoundError):
        return UserError(f"{key}: no data set {name}: {reason}; check the name or folder")
    if isinstance(error, (ValueError, RuntimeError)):  # RuntimeError: a data set that needs its own script
        return UserError(f"{key}: hub data set {name} cannot be read: {reason}")
    mend = "check the network"
    if isinstance(error, OfflineModeIsEnabled) or OfflineModeIsEnabled.__name__ in reason:
        variable = offline_by()  # else nothing has answered before
        why = "the hub does not answer" if variable is None else f"{variable} is set"
        reason, mend = f"{why}, and it is not in the cache", mend if variable is None else f"unset {variable}"
    return HubUnreachable(
        f"{key}: cannot reach hub data set {name} ({reason}): {mend}, or give local files", dataset
    )


def offline_by() -> str | None:
    """The environment variable by which the user keeps this process from the hub; None: there is none."""
    for name in OFFLINE_VARIABLES:
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            return name
    return None
