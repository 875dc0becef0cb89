"""Packs a file in a process of its own, which the tests kill, start twice and measure.

Usage: python -m tests.corpora.packing_worker TEXT CACHE BUDGET SECONDS_PER_BATCH
Prints the training tokens, the held-out tokens and the peak memory in bytes.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

from lape_ds.corpora import packing
from lape_ds.languages import find_language
from lape_ds.recipe import FilesSource
from tests.conftest import byte_tokenizer


def main() -> None:
    text, cache, budget, seconds = sys.argv[1:]
    packing.STATE_EVERY_SECONDS = 0.0
    tokenize = packing.tokenize

    def slowly(tokenizer, texts):
        time.sleep(float(seconds))
        return tokenize(tokenizer, texts)

    packing.tokenize = slowly
    corpus = packing.pack(
        find_language("mlt"),
        FilesSource(kind="files", path=text),
        byte_tokenizer(),
        Path(cache),
        train_tokens="all" if budget == "all" else int(budget),
        heldout_share=0.1,
        on_bad_line="stop",
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(corpus.train.num_tokens, corpus.heldout.num_tokens, peak)


if __name__ == "__main__":
    main()
