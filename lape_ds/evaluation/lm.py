"""A loaded model as lm-evaluation-harness wants it, with the harness's traps closed and its noise off.

In the evaluation room, below `harness.py`; the only module that overrides anything of the harness.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval.api.task
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import resolve_max_length

from lape_ds.model.loading import load_model, load_tokenizer, without_bars

# Windows of rolling log-likelihoods are at most this long: the full context of a 128k model would cost its
# memory for nothing, and make bits per byte of two models with unlike contexts incomparable.
MAX_LENGTH = 4096

_HFLM: Any = HFLM  # its registering decorator hides the class's type


class HarnessModel(_HFLM):
    """The harness's Hugging Face model without its double BOS and without its progress bars."""

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood in nats of each request's whole text.

        Every window already begins with the prefix token. A tokenizer that adds BOS by itself would put a
        second one behind it and have it scored as text, so here it adds nothing.
        """
        add_bos_token = self.add_bos_token
        self.add_bos_token = False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)
        finally:
            self.add_bos_token = add_bos_token

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether it is the greedy one."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None
    ) -> Any:
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)


def load_harness_model(folder: Path, *, dtype: str, batch_size: int) -> HarnessModel:
    """Loads a Hugging Face folder onto the GPU if there is one.

    Args:
        folder: With model and tokenizer.
        dtype: `float32` or `bfloat16`, of the weights; log-probabilities are always taken in float32.
        batch_size: Requests per forward pass.

    Raises:
        UserError: The model or its tokenizer cannot be loaded.
    """
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=dtype, attn_implementation="sdpa")
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # pyright: ignore[reportArgumentType]
    return HarnessModel(
        pretrained=model,
        tokenizer=tokenizer,
        max_length=min(MAX_LENGTH, resolve_max_length(model.config, tokenizer)),
        batch_size=batch_size,
        softmax_dtype="float32",
    )


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Silences what the harness says of its own start, and the bars for prompts and for loading weights."""
    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, lm_eval.api.task.tqdm
    logger.setLevel(logging.ERROR)
    lm_eval.api.task.tqdm = lambda items, **_: items  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with without_bars():
            yield
    finally:
        logger.setLevel(level)
        lm_eval.api.task.tqdm = bar
