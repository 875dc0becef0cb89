"""Whether the hub answers: asked once in a process, with a short bound, before anything is wanted of it.

First of the evaluation room, beside data_sources.py. The hub's own clients try every request six times, for half a minute, and
ask anew for each data set: a machine without a network would spend an evaluation's time on that.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import cast

import datasets.config
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

from lape_ds.errors import first_line

_SERVER_ERROR = 500

logger = logging.getLogger(__name__)


@functools.cache
def ask_hub() -> bool:
    """Whether the hub is to be asked for more.

    The first call sends one request, for up to HF_HUB_ETAG_TIMEOUT (10 seconds) per address. Where nothing answers, a line
    tells it, and this process goes on as with HF_HUB_OFFLINE: with what is in the hub's cache, while the rest is missing at once.

    Returns:
        False where it does not answer, or HF_HUB_OFFLINE is set.
    """
    if constants.is_offline_mode() or datasets.config.HF_HUB_OFFLINE:
        return False
    # The bases name the transport's error, whichever HTTP library the hub's client uses.
    transport = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    try:
        answer = get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if answer.status_code >= _SERVER_ERROR:  # the hub's own, or of a proxy that does not reach it
            answer.raise_for_status()
    except transport as error:
        # Both read the environment when they were imported. transformers asks the first of them.
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        logger.warning(
            "the hub does not answer at %s (%s): only what is in its cache (%s) or in local files is used",
            constants.ENDPOINT,
            first_line(error),
            constants.HF_HUB_CACHE,
        )
        return False
    return True


def ask_hub_for_model(path: str) -> None:
    """`ask_hub`, where a model's path is a hub id.

    Args:
        path: Folder or hub id.
    """
    if not Path(path).expanduser().exists() and not path.startswith((".", "/", "~")):
        ask_hub()
