"""All ranks of an evaluation answer what the harness asks the first one.

Between the models (lm.py), one on every rank, and the harness, which runs on the first rank alone and sees one model and a world
of one: prompts cannot depend on the number of ranks.
"""

from __future__ import annotations

import heapq
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from lape_ds.distributed import ranks
from lape_ds.errors import UserError
from lape_ds.evaluation.channels import Channel, open_channels, reach_first, ready
from lape_ds.evaluation.lm import LocalModel, ModelSettings, ModelSource, load_harness_model, quiet_harness
from lape_ds.model.loading import fingerprint

_MOST_TOGETHER = 16  # requests of one context

Arguments = tuple[Any, ...]  # of one request, as the harness gives them


class RequestsFailed(RuntimeError):
    """A rank could not answer: says which and why. All ranks are ready for the next requests."""

    def __init__(self, text: str, trace: str) -> None:
        super().__init__(text)
        self.trace = trace


class TasksFailed(UserError):
    """Some tasks have failed, the others are measured: the ranks end in order."""


@dataclass(frozen=True)
class _Load:
    source: ModelSource
    settings: ModelSettings
    weights: str

    def message(self) -> dict[str, Any]:
        pack = self.source.pack
        source = vars(self.source) | {"pack": None if pack is None else str(pack)}
        return {"load": source, "settings": vars(self.settings), "weights": self.weights}

    @classmethod
    def of(cls, message: dict[str, Any]) -> _Load:
        source = message["load"]
        pack = None if source["pack"] is None else Path(source["pack"])
        return cls(
            ModelSource(**source | {"pack": pack}),
            ModelSettings(**message["settings"]),
            message["weights"],
        )


@dataclass(frozen=True)
class _Reply:
    """What a rank sends while it answers: the next answers of its share, or why there are none. Of a loading: no answers."""

    answers: list[Any]
    failure: tuple[str, str] | None = None  # text, traceback
    num_truncated: int = 0

    @classmethod
    def of(cls, message: dict[str, Any]) -> _Reply:
        answers = [tuple(one) if isinstance(one, list) else one for one in message["answers"]]
        failure = message["failure"]
        return cls(answers, None if failure is None else tuple(failure))


class ServedModel(LM):
    """On the first rank: the model that the harness asks. Answers come from all ranks.

    Example:
        with ServedModel() as model:
            model.load(source, settings, fingerprint=...)
            model.loglikelihood(requests)
    """

    def __init__(self) -> None:
        super().__init__()
        self.advance: Callable[[float], None] = lambda share: (
            None
        )  # told of every part of the requests answered
        self.num_truncated = 0  # requests whose beginning the model could not take, since this was set to 0
        self._model: LocalModel | None = None
        self._others: list[Channel] = []
        self._collected = _Collected([])

    def __enter__(self) -> Self:
        if ranks.world_size() > 1:
            self._others = open_channels()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Any other error ends the other ranks by the heartbeat.
        if kind is None or issubclass(kind, TasksFailed):
            self._collected.take_all()
            for other in self._others:
                other.send({"end": 0 if kind is None else 2})
                other.close()

    def load(self, source: ModelSource, settings: ModelSettings, *, weights: str) -> None:
        """Has every rank load a model in the place of the one before.

        Args:
            source: The model.
            settings: How it is loaded and asked.
            weights: Fingerprint that its folder must have on every host.

        Raises:
            RequestsFailed: A rank cannot load it. All are ready for another one.
        """
        self._model = None  # its memory, before the next one's
        self._collected.take_all()
        for other in self._others:
            other.send(_Load(source, settings, weights).message())
        self._model, reply = _loaded(source, settings, weights)
        replies = [reply, *(_Reply.of(other.receive()) for other in self._others)]
        failures = [reply.failure for reply in replies if reply.failure is not None]
        if failures:
            self._model = None
            raise RequestsFailed(*failures[0])

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation, and whether it is the greedy one."""
        return self._answers("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood in nats of each request's whole text."""
        return self._answers("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """What the model writes after each context, up to the first stop sequence."""
        return self._answers("generate_until", requests)

    def _answers(self, method: str, requests: Sequence[Instance]) -> list[Any]:
        assert self._model is not None
        arguments = [request.args for request in requests]
        shares = divide(arguments, 1 + len(self._others))
        # Where the requests before were broken off: their answers would be taken for these ones', or fill the lines.
        self._collected.take_all()
        collected = self._collected = _Collected([len(share) for share in shares])
        for other, share in zip(self._others, shares[1:], strict=True):
            collected.ask(other, method, [arguments[number] for number in share])
        for reply in _replies(self._model, method, [arguments[number] for number in shares[0]]):
            for count in (collected.add(0, reply), *collected.take(0.0)):
                self.advance(count / len(requests))
        for count in collected.take(None):
            self.advance(count / len(requests))
        collected.check()
        self.num_truncated += collected.num_truncated
        answers: list[Any] = [None] * len(requests)
        for share, given in zip(shares, collected.answers, strict=True):
            for number, answer in zip(share, given, strict=True):
                answers[number] = answer
        return answers


class _Collected:
    """The answers of all ranks to their shares, as they come."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.answers: list[list[Any]] = [[] for _ in sizes]
        self.num_truncated = 0
        self._sizes = sizes
        self._failures: list[tuple[str, str]] = []
        self._open: dict[int, Channel] = {}  # ranks that have not answered all

    def ask(self, other: Channel, method: str, share: Sequence[Arguments]) -> None:
        """Sends a rank its share."""
        if share:
            other.send({"ask": method, "share": share})
            self._open[other.rank] = other

    def add(self, rank: int, reply: _Reply) -> int:
        """Keeps a reply and tells how many answers it has."""
        self.answers[rank] += reply.answers
        self.num_truncated += reply.num_truncated
        if reply.failure is not None:
            self._failures.append(reply.failure)
        if reply.failure is not None or len(self.answers[rank]) == self._sizes[rank]:
            self._open.pop(rank, None)
        return len(reply.answers)

    def take(self, timeout: float | None) -> Iterator[int]:
        """What has come, as numbers of answers; with None, all that is to come."""
        while self._open and (came := ready(list(self._open.values()), timeout)):
            yield sum(self.add(channel.rank, _Reply.of(channel.receive())) for channel in came)

    def take_all(self) -> None:
        """All that is to come."""
        for _ in self.take(None):
            pass

    def check(self) -> None:
        """Raises where a rank could not answer.

        Raises:
            RequestsFailed: With the first one's reason.
        """
        if self._failures:
            raise RequestsFailed(*self._failures[0])


def serve() -> int:
    """What every rank but the first does: loads models and answers, until there is no more.

    Returns:
        The exit code.
    """
    first, model = reach_first(), None
    with quiet_harness():
        while True:
            match first.receive():
                case {"end": code}:
                    first.close()
                    return code
                case {"load": _} as message:
                    model = None
                    wanted = _Load.of(message)
                    model, reply = _loaded(wanted.source, wanted.settings, wanted.weights)
                    first.send(vars(reply))
                case {"ask": method, "share": share}:
                    assert model is not None
                    for reply in _replies(model, method, [tuple(arguments) for arguments in share]):
                        first.send(vars(reply))


def _loaded(source: ModelSource, settings: ModelSettings, weights: str) -> tuple[LocalModel | None, _Reply]:
    """A model, or why there is none."""
    try:
        _check_same_weights(source, weights)
        return load_harness_model(source, settings, weights=weights), _Reply([])
    except Exception as error:  # of any kind, from the libraries: the first rank tells it as the model's
        return None, _failed(error)


def _check_same_weights(source: ModelSource, expected: str) -> None:
    """One rank of each other host reads its copy: two hosts with unlike ones would give one score."""
    if ranks.rank() > 0 and ranks.ranks_here() < ranks.world_size() and ranks.local_rank() == 0:
        folder = source.folder()
        if fingerprint(folder) != expected:
            raise UserError(
                f"{source.label}: {folder} on {socket.gethostname()} holds other weights than on the first rank's host: copy it "
                "there anew"
            )


def _replies(model: LocalModel, method: str, share: Sequence[Arguments]) -> Iterator[_Reply]:
    """The answers to a share, a piece at a time; a failure ends them."""
    for piece in _pieces(share, model.piece_size):
        requests = [Instance(method, {}, one, number) for number, one in enumerate(piece)]  # type: ignore[arg-type]
        before = model.num_truncated
        try:
            answers = getattr(model, method)(requests)
        except (
            Exception
        ) as error:  # of any kind, from the harness or the model: the first rank tells it as the task's
            yield _failed(error)
            return
        yield _Reply(answers, num_truncated=model.num_truncated - before)


def _failed(error: Exception) -> _Reply:
    """To be called where it is handled."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # of what did not fit
    where = f"rank {ranks.rank()} on {socket.gethostname()}: " if ranks.world_size() > 1 else ""
    return _Reply([], (f"{where}{told(error)}", traceback.format_exc()))


def told(error: BaseException) -> str:
    """An error in one line: a user's own words, or the kind of ours, and what to do where that is known."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError | RequestsFailed):
        return text
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory; set a smaller --batch-size ({text[:200]})"
    if not text and (frames := traceback.extract_tb(error.__traceback__)):  # a bare assertion
        text = f"in {Path(frames[-1].filename).name}, line {frames[-1].lineno}"
    return f"{type(error).__name__}: {text[:500]}"


def divide(requests: Sequence[Arguments], num_shares: int) -> list[list[int]]:
    """Which requests each rank answers, as numbers: about equal lengths of text, the longest first.

    Requests of one context stay together, next to each other: the harness runs one row for all continuations of a single token.
    At most so many as a question may have choices: there are tasks in which all documents have one context, an empty one.

    Args:
        requests: Their arguments; the first is the context, or the text.
        num_shares: One share each; some are empty where there is little to do.
    """
    contexts: dict[str, list[int]] = {}
    for number, (context, *_) in enumerate(requests):
        contexts.setdefault(context, []).append(number)

    def length(number: int) -> int:
        return sum(len(argument) for argument in requests[number] if isinstance(argument, str))

    together: list[list[int]] = []
    for of_context in contexts.values():
        of_context.sort(key=length, reverse=True)
        together += [of_context[n : n + _MOST_TOGETHER] for n in range(0, len(of_context), _MOST_TOGETHER)]
    longest_first = sorted(together, key=lambda numbers: -length(numbers[0]))
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    loads = [(0, share) for share in range(num_shares)]  # a heap
    for numbers in longest_first:
        load, share = heapq.heappop(loads)
        shares[share] += numbers
        heapq.heappush(loads, (load + sum(map(length, numbers)) + 1, share))
    return shares


def _pieces(share: Sequence[Arguments], size: int) -> Iterator[list[Arguments]]:
    """The share in about so many requests at a time, without parting those of a context that are to stay together."""
    piece: list[Arguments] = []
    for arguments in share:
        ended = piece and arguments[0] != piece[-1][0]
        if len(piece) >= size and (ended or len(piece) >= size + _MOST_TOGETHER):
            yield piece
            piece = []
        piece.append(arguments)
    if piece:
        yield piece
