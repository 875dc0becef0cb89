"""A loaded model as lm-evaluation-harness wants it, with the harness's traps closed and its noise off.

In the evaluation room, below the ranks that serve it (serving.py); the only module that overrides anything of the harness.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import datasets
import lm_eval.api.task
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import GenerationConfig

from lape_ds.distributed import ranks
from lape_ds.errors import UserError
from lape_ds.evaluation.hub_access import ask_hub_for_model
from lape_ds.evaluation.model_facts import LONGEST_WINDOW, model_facts
from lape_ds.model.loading import load_model, load_tokenizer, resolve_model, without_bars
from lape_ds.subnetwork.pack import Pack

# Logits of whole rows are kept, vocabulary and all: a long one counts for as many requests as hold so many tokens.
_TOKENS_PER_REQUEST = 512
# Requests between two words of how far it is, in forward passes; sorted by length among themselves.
_BATCHES_PER_PIECE = 8
_VLLM_PIECE = 4096  # vLLM makes its own batches, and wants to choose from many

Backend = Literal["hf", "vllm"]
_HFLM: Any = HFLM  # its registering decorator hides the class's type


@dataclass(frozen=True)
class ModelSource:
    """What is measured.

    Attributes:
        label: What it is called in tables and folders.
        path: A Hugging Face folder or a hub id.
        revision: Of a hub model.
        pack: A `pack.safetensors` that is applied to it in memory.
    """

    label: str
    path: str
    revision: str | None = None
    pack: Path | None = None

    def folder(self) -> Path:
        """Where it lies on this machine, fetched if need be.

        Raises:
            UserError: No such model, or it cannot be fetched.
        """
        return _folder(self.path, self.revision)


@functools.cache  # the hub is asked once: a branch that moves meanwhile must not be two models
def _folder(path: str, revision: str | None) -> Path:
    ask_hub_for_model(path)
    return resolve_model(path, revision)


@dataclass(frozen=True)
class ModelSettings:
    """How models are loaded and asked, the same for all of them.

    Attributes:
        backend: What computes.
        dtype: `float32` or `bfloat16`, of the weights; log-probabilities are always taken in float32. None: each model's own, by
            its config.json, and float32 where that is another.
        batch_size: Requests per forward pass; does not change scores beyond rounding.
        attn_implementation: `sdpa` (eager where a model has none), `eager` or `flash_attention_2`; vLLM has its own.
    """

    backend: Backend = "hf"
    dtype: str | None = "float32"
    batch_size: int = 16
    attn_implementation: str = "sdpa"


class LocalModel(Protocol):
    """A model of this process: its methods answer the harness's kinds of requests."""

    piece_size: int  # requests that are best given to it at once
    num_truncated: int  # of all that it has answered, those whose beginning it could not take

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether it is the greedy one."""
        ...

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood in nats of each request's whole text."""
        ...

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What the model writes after each context, up to the first stop sequence."""
        ...


class _Quiet:
    """Over a model class of the harness: without its double BOS and its progress bars; it counts what it cuts."""

    add_bos_token: bool | None
    tok_encode: Any
    prefix_token_id: Any
    max_length: int
    max_gen_toks: int
    _max_length: int | None
    # Tokens of a scored request beyond `max_length` (its last one is not fed), and of a window that are kept free.
    _scored_beyond = 1
    _kept_of_window = 0

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.num_truncated = 0

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether it is the greedy one."""
        return super().loglikelihood(requests, disable_tqdm=True)  # type: ignore[misc]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both, the continuation's never none.

        A tokenizer may join all of a continuation to the context's last piece; the harness then fails, and with it the task.
        Here the continuation begins at the first piece that is another than the context's own.
        """
        context_ids, continuation_ids = super()._encode_pair(context, continuation)  # type: ignore[misc]
        if continuation_ids:
            return context_ids, continuation_ids
        whole = self.tok_encode(context + continuation)
        same = [mine == theirs for mine, theirs in zip(whole, context_ids, strict=False)]
        start = min(same.index(False) if False in same else len(same), len(whole) - 1)
        return whole[:start] or [self.prefix_token_id], whole[start:]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood in nats of each request's whole text.

        Every window already begins with the prefix token. A tokenizer that adds BOS by itself would put a
        second one behind it and have it scored as text, so here it adds nothing. Only these windows are capped.
        """
        add_bos_token, longest = self.add_bos_token, self.max_length
        self.add_bos_token, self._max_length = False, min(LONGEST_WINDOW + self._kept_of_window, longest)
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)  # type: ignore[misc]
        finally:
            self.add_bos_token, self._max_length = add_bos_token, longest

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """What the model writes after each context, up to the first stop sequence.

        Raises:
            UserError: A task's longest answer leaves no place for a prompt.
        """
        for request in requests:
            context, writing = request.arguments
            longest = dict[str, Any](normalize_gen_kwargs(writing, self.max_gen_toks))["max_gen_toks"]
            if longest >= self.max_length:
                raise UserError(
                    f"answers may have {longest} tokens here, and the model takes {self.max_length}, prompt included: leave the "
                    "task out, or measure a model with a longer context"
                )
            self.num_truncated += len(self.tok_encode(context)) > self.max_length - longest
        return super().generate_until(requests, disable_tqdm=True)  # type: ignore[misc]

    def _loglikelihood_tokens(self, requests: Any, **settings: Any) -> Any:
        longest = self.max_length + self._scored_beyond
        self.num_truncated += sum(len(context) + len(scored) > longest for _, context, scored in requests)
        return super()._loglikelihood_tokens(requests, **settings | {"disable_tqdm": True})  # type: ignore[misc]


class HarnessModel(_Quiet, _HFLM):
    """The harness's Hugging Face model; what it answers does not depend on what else is in a batch."""

    @property
    def piece_size(self) -> int:
        """Requests that are best given to it at once."""
        return _BATCHES_PER_PIECE * self.batch_size_per_gpu

    def _loglikelihood_tokens(self, requests: Any, **settings: Any) -> Any:
        """As above, with fewer rows at a time the longer they are, and one row for all single tokens after a context.

        With its cache on, the harness (0.4.13) runs one row for all requests that are the same up to the last token. Where one of
        their continuations begins later than another, as in the windows of a text that repeats itself, it reads log-probabilities
        at the other's places.
        """
        parts: dict[tuple[bool, int], list[int]] = {}
        for number, (_, context, scored) in enumerate(requests):
            rows = self._rows(len(context) + len(scored))
            parts.setdefault((len(scored) == 1, rows), []).append(number)
        answers: list[Any] = [None] * len(requests)
        batch_size = self.batch_size_per_gpu
        try:
            for (self.logits_cache, self.batch_size_per_gpu), numbers in sorted(parts.items()):
                found = super()._loglikelihood_tokens([requests[number] for number in numbers], **settings)
                for number, answer in zip(numbers, found, strict=True):
                    answers[number] = answer
        finally:
            self.batch_size_per_gpu = batch_size
        return answers

    def _rows(self, length: int) -> int:
        """Of this many tokens, how many a forward pass takes: by halves, so that there are few kinds of passes."""
        rows = self.batch_size_per_gpu
        while (
            rows > 1 and rows * min(length, self.max_length) > self.batch_size_per_gpu * _TOKENS_PER_REQUEST
        ):
            rows //= 2
        return rows

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask, int64 `[len(strings), longest]`.

        The harness lets the first text of a batch decide for all of them whether BOS is added.
        """
        assert padding_side == "left"
        assert not truncation
        rows = [self.tok_encode(text, left_truncate_len=left_truncate_len) for text in strings]
        shape = len(rows), max(map(len, rows))
        token_ids, mask = torch.full(shape, self.tokenizer.pad_token_id), torch.zeros(shape, dtype=torch.long)
        for number, row in enumerate(rows):
            start = shape[1] - len(row)
            token_ids[number, start:], mask[number, start:] = torch.tensor(row), 1
        return token_ids, mask


def load_harness_model(source: ModelSource, settings: ModelSettings, *, weights: str) -> LocalModel:
    """Loads a model onto this rank's device (vLLM: onto all visible GPUs).

    Args:
        source: The model.
        settings: Backend, precision, requests per forward pass.
        weights: Fingerprint of the folder, which a pack must be made for.

    Raises:
        UserError: The model, its tokenizer or its pack cannot be loaded, or the pack is of another base.
    """
    if settings.backend == "vllm":
        return _load_vllm(source, settings)
    folder = source.folder()
    tokenizer = load_tokenizer(folder)
    facts = model_facts(folder, dtype=settings.dtype, attn_implementation=settings.attn_implementation)
    model = load_model(
        folder,
        dtype=facts.dtype,
        attn_implementation=facts.attn_implementation,
        device=ranks.device(),
    )
    if source.pack is not None:
        Pack.load(source.pack).apply(model, base_fingerprint=weights)
    # A checkpoint may bring sampling, penalties or lengths of its own: a task says how its answers are written.
    model.generation_config = GenerationConfig(**facts.special_token_ids)
    return HarnessModel(
        pretrained=model,
        tokenizer=tokenizer,
        max_length=facts.context_length,
        batch_size=settings.batch_size,
        softmax_dtype="float32",
    )


def check_backend(settings: ModelSettings, sources: Sequence[ModelSource], *, num_ranks: int) -> None:
    """Refuses what vLLM cannot do, before anything is loaded.

    Raises:
        UserError: It is wanted but not installed, or with several ranks, or for a pack.
    """
    if settings.backend != "vllm":
        return
    if num_ranks > 1:
        raise UserError(
            f"eval.backend: vllm divides a model over the visible GPUs by itself, and there are {num_ranks} ranks: start "
            "`lape-ds eval` as one process (no --hostfile, one task of srun), or use eval.backend=hf"
        )
    for source in sources:
        if source.pack is not None:
            raise UserError(
                f"{source.label}: vLLM cannot apply {source.pack}: run `lape-ds export` first, or use eval.backend=hf"
            )
    if find_spec("vllm") is None:
        raise UserError(
            "eval.backend: vllm is not installed here: `pip install vllm`, or use eval.backend=hf"
        )


def vllm_arguments(source: ModelSource, settings: ModelSettings) -> dict[str, Any]:
    """What the harness's vLLM model is made with.

    Raises:
        UserError: The model cannot be had.
    """
    folder = source.folder()
    facts = model_facts(folder, dtype=settings.dtype)
    return {
        "pretrained": str(folder),
        "dtype": facts.dtype,
        "max_length": facts.context_length,
        "batch_size": _VLLM_PIECE,  # a number: "auto" shows bars
        "tensor_parallel_size": _num_parts(facts.num_heads, torch.cuda.device_count()),
        "seed": 0,
    }


def _num_parts(num_heads: tuple[int, int], num_devices: int) -> int:
    """The most GPUs over which vLLM can divide a model: it parts heads of queries evenly; those of keys it may also repeat."""
    of_queries, of_keys = num_heads
    return max(
        size
        for size in range(1, max(1, num_devices) + 1)
        if of_queries % size == 0 and (of_keys % size == 0 or size % of_keys == 0)
    )


def _load_vllm(source: ModelSource, settings: ModelSettings) -> LocalModel:
    from lm_eval.models.vllm_causallms import VLLM  # imports vllm

    vllm: Any = VLLM

    class VLLMModel(_Quiet, vllm):
        piece_size = _VLLM_PIECE
        _scored_beyond = -1
        _kept_of_window = 2

    return VLLMModel(**vllm_arguments(source, settings))


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Silences what the harness says of its own start, and the bars for prompts and for loading weights.

    Without a network `datasets` would tell of every data set that it takes from the cache.
    """
    logger = logging.getLogger("lm_eval")
    level, bar, verbosity = logger.level, lm_eval.api.task.tqdm, datasets.logging.get_verbosity()
    logger.setLevel(logging.ERROR)
    datasets.logging.set_verbosity_error()
    lm_eval.api.task.tqdm = lambda items, **_: items  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with without_bars():
            yield
    finally:
        logger.setLevel(level)
        datasets.logging.set_verbosity(verbosity)
        lm_eval.api.task.tqdm = bar
