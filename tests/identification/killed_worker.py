"""Identifies, and is killed at a given moment of writing: `RECIPE N` before the N-th renaming or deleting, or after it."""

from __future__ import annotations

import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

from lape_ds.distributed.ranks import leave
from lape_ds.identification import share
from lape_ds.identification.stage import identify
from lape_ds.recipe import load_recipe


def main(recipe: str, number: int) -> None:
    moments = count(1)

    def live_on() -> None:
        if next(moments) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    replace, unlink = os.replace, Path.unlink

    def replace_watched(*paths: Any) -> None:
        live_on()
        replace(*paths)
        live_on()

    def unlink_watched(path: Path, missing_ok: bool = False) -> None:
        live_on()
        unlink(path, missing_ok=missing_ok)

    os.replace = replace_watched
    Path.unlink = unlink_watched  # type: ignore[method-assign]
    share.SECONDS_BETWEEN_WRITES = 0.0
    identify(load_recipe(recipe))
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
