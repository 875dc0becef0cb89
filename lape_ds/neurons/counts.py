"""Counts: how often each neuron was active on one language's text, as a typed, additive artefact.

Written by counting, read by LAPE selection; the file is `counts/<language>.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import InitVar, asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from lape_ds.corpora.splitting import NUM_BUCKETS
from lape_ds.errors import UserError
from lape_ds.neurons.artefact import load_artefact, read_metadata, save_artefact

SCHEMA_VERSION = 1
INT32_MAX = 2**31 - 1
ACTIVATION_UNIT = 2**20
_OPTIONAL = ("expert_tokens", "activation_sums")  # tensors that not all counts have
_KIND = "activation counts"
_AGAIN = "the file is damaged: delete it and run `lape-ds identify` again"


@dataclass(frozen=True)
class CountSettings:
    """What two counts must share to be added.

    The context length is one of them: the same text cut into longer windows gives other counts (issue 17 of
    the LAPE authors' repository). So are the ways of attention: in bfloat16 they round differently. The batch size, which
    may do that too, is not: a computation's last batch has another one anyway.
    """

    language: str
    model_id: str
    model_fingerprint: str
    context_length: int
    dtype: str  # in which the model ran, e.g. "bfloat16"
    reset_positions: bool = False  # whether each document saw itself only; files that do not say did not
    attn_implementation: str = "sdpa"  # files that do not say are taken to have had it

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str]) -> CountSettings:
        """As files hold them.

        Raises:
            KeyError: One is missing.
        """
        return cls(
            language=metadata["language"],
            model_id=metadata["model_id"],
            model_fingerprint=metadata["model_fingerprint"],
            context_length=int(metadata["context_length"]),
            dtype=metadata["dtype"],
            reset_positions=metadata.get("reset_positions", "False") == "True",
            attn_implementation=metadata.get("attn_implementation", "sdpa"),
        )


@dataclass(frozen=True, order=True)
class CountedBlocks:
    """A stretch of a packed corpus: blocks `start` to `stop` - 1, which hold `num_tokens` tokens.

    The budget ends within the last block, so that its number alone does not tell how much text was counted.
    """

    corpus_fingerprint: str
    start: int
    stop: int
    num_tokens: int  # BOS and EOS among them

    def overlaps(self, other: CountedBlocks) -> bool:
        """Whether some block lies in both."""
        return (
            self.corpus_fingerprint == other.corpus_fingerprint
            and self.start < other.stop
            and other.start < self.stop
        )


def coalesced(parts: Iterable[CountedBlocks]) -> tuple[CountedBlocks, ...]:
    """The same text in as few stretches as can be, in order: what one stretch is told as when it was counted in several."""
    joined: list[CountedBlocks] = []
    for part in sorted(parts):
        last = joined[-1] if joined else None
        if last and (last.corpus_fingerprint, last.stop) == (part.corpus_fingerprint, part.start):
            joined[-1] = replace(last, stop=part.stop, num_tokens=last.num_tokens + part.num_tokens)
        else:
            joined.append(part)
    return tuple(joined)


@dataclass(frozen=True)
class CountsHeader:
    """What a file of counts says of itself."""

    settings: CountSettings
    parts: tuple[CountedBlocks, ...]
    has_sums: bool  # of activations

    @classmethod
    def read(cls, path: Path) -> CountsHeader:
        """Reads it, and none of the counts.

        Raises:
            UserError: Not a counts file, or a damaged one.
        """
        metadata = read_metadata(path, kind=_KIND, schema_version=SCHEMA_VERSION)
        with safe_open(path, framework="pt") as file:
            return cls(*_identity(path, metadata), has_sums="activation_sums" in file.keys())  # noqa: SIM118 (not a dict)


@dataclass(frozen=True, eq=False)
class Counts:
    """Activation counts of one language.

    Attributes:
        active: int32 `[16, layers, neurons]`: tokens of the bucket on which the neuron's activation was > 0.
        tokens: int64 `[16]`: tokens of the bucket.
        settings: How they were counted.
        parts: The text that was counted.
        expert_tokens: int64 `[16, layers, experts]`: tokens of the bucket that were routed to the expert; None for
            dense models.
        activation_sums: int64 `[layers, neurons]`: the neuron's activations, each as a whole number of `ACTIVATION_UNIT`-ths,
            summed over all tokens; None where they were not asked for. Whole numbers, so that sums are the same in any order.
        check: Whether to look at every number; False where that was done before, for it takes longer than to read them.

    Raises:
        UserError: The tensors cannot be counts (NaN, negative, more active than there were tokens, wrong type
            or shape).
    """

    active: Tensor
    tokens: Tensor
    settings: CountSettings
    parts: tuple[CountedBlocks, ...]
    expert_tokens: Tensor | None = None
    activation_sums: Tensor | None = None
    check: InitVar[bool] = True

    def __post_init__(self, check: bool) -> None:
        if not check:
            return
        self._check("active", self.active, torch.int32, num_dims=3)
        self._check("tokens", self.tokens, torch.int64, num_dims=1)
        seen = self.tokens[:, None, None]  # by a neuron's expert, of which a dense block is one
        if self.expert_tokens is not None:
            self._check("expert_tokens", self.expert_tokens, torch.int64, num_dims=3)
            self._check_experts(self.expert_tokens)
            seen = self.expert_tokens
        by_expert = self.active.unflatten(2, (seen.shape[2], -1))
        if bool((by_expert > seen[..., None]).any()):
            raise self._damaged("a neuron is active on more tokens than there are")
        sums = self.activation_sums
        if sums is not None and (sums.dtype != torch.int64 or sums.shape != self.active.shape[1:]):
            raise self._damaged(
                f"activation_sums is {sums.dtype} {list(sums.shape)}, which does not fit active"
            )

    def _check(self, name: str, tensor: Tensor, dtype: torch.dtype, *, num_dims: int) -> None:
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise self._damaged(f"{name} contains NaN")
        if tensor.dtype != dtype or tensor.dim() != num_dims or tensor.shape[0] != NUM_BUCKETS:
            raise self._damaged(
                f"{name} is {tensor.dtype} {list(tensor.shape)} where {dtype} with {NUM_BUCKETS} buckets and "
                f"{num_dims} axes is needed"
            )
        if bool((tensor < 0).any()):
            raise self._damaged(f"negative counts in {name}")

    def _check_experts(self, expert_tokens: Tensor) -> None:
        num_layers, num_experts = expert_tokens.shape[1:]
        if num_layers != self.active.shape[1] or num_experts == 0 or self.active.shape[2] % num_experts:
            raise self._damaged(
                f"expert_tokens {list(expert_tokens.shape)} does not fit active {list(self.active.shape)}"
            )
        if bool((expert_tokens > self.tokens[:, None, None]).any()):
            raise self._damaged("an expert has more tokens than there are")

    def _damaged(self, what: str) -> UserError:
        return UserError(f"counts of {self.settings.language}: {what}; {_AGAIN}")

    def num_tokens(self) -> int:
        """All tokens that were counted.

        Raises:
            UserError: There is none.
        """
        num_tokens = int(self.tokens.sum())
        if num_tokens == 0:
            raise UserError(
                f"counts of {self.settings.language}: no tokens; give the language some text in `corpus`"
            )
        return num_tokens

    def probabilities(self) -> Tensor:
        """p(activation > 0) per neuron over all buckets, float64 `[layers, neurons]`.

        A share of all tokens in a mixture of experts too: on a token that is not routed to its expert a neuron is not
        active. So a language's neurons are those that work on its text, whichever of router and gate sees to that.

        Raises:
            UserError: Not one token was counted.
        """
        return self.total_active().double() / self.num_tokens()

    def total_active(self) -> Tensor:
        """Tokens on which each neuron was active, over all buckets, `[layers, neurons]`; int32 where that holds them."""
        total = self.active.sum(0, dtype=torch.int64)
        return total.int() if int(self.tokens.sum()) <= INT32_MAX else total

    def mean_activations(self) -> Tensor:
        """Mean of each neuron's activation over all tokens, float64 `[layers, neurons]`; as a mixture's probabilities.

        Raises:
            UserError: Not one token was counted, or activations were not summed.
        """
        if self.activation_sums is None:
            raise UserError(
                f"counts of {self.settings.language} hold no sums of activations; count again with "
                "`identify.method=mean_activation`"
            )
        return self.activation_sums.double() / ACTIVATION_UNIT / self.num_tokens()

    def merge(self, other: Counts) -> Counts:
        """Adds counts of further text, counted in the same way.

        Raises:
            UserError: They were counted differently, share text, or the sum leaves int32.
        """
        _check_alike(self, other)
        if int((self.tokens + other.tokens).max()) > INT32_MAX:
            raise UserError(
                f"counts of {self.settings.language}: more than {INT32_MAX} tokens in a bucket; merge fewer "
                "files"
            )
        parts = coalesced(self.parts + other.parts)
        return Counts(
            self.active + other.active,
            self.tokens + other.tokens,
            self.settings,
            parts,
            _sum(self.expert_tokens, other.expert_tokens),
            _sum(self.activation_sums, other.activation_sums),
        )

    def save(self, path: Path) -> None:
        """Writes the counts, whole or not at all."""
        metadata = {**{name: str(value) for name, value in asdict(self.settings).items()}}
        metadata["parts"] = json.dumps([asdict(part) for part in self.parts])
        tensors = {"active": self.active, "tokens": self.tokens}
        for name in _OPTIONAL:
            tensor = getattr(self, name)
            if tensor is not None:
                tensors[name] = tensor
        save_artefact(path, tensors, kind=_KIND, schema_version=SCHEMA_VERSION, metadata=metadata)

    @classmethod
    def load(cls, path: Path, *, check: bool = True) -> Counts:
        """Reads what `save` wrote.

        Args:
            path: The file.
            check: As `Counts` has it; a file that is none is refused in any case.

        Raises:
            UserError: Not a counts file, or a damaged one.
        """
        tensors, metadata = load_artefact(path, kind=_KIND, schema_version=SCHEMA_VERSION)
        settings, parts = _identity(path, metadata)
        try:
            optional = {name: tensors.get(name) for name in _OPTIONAL}
            return cls(tensors["active"], tensors["tokens"], settings, parts, **optional, check=check)
        except KeyError as error:
            raise UserError(f"{path} lacks {error}; {_AGAIN}") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


class CountsFiles:
    """Files of counts to go through again and again, as the bootstrap does: each is checked once, and anew when changed."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Reads nothing yet."""
        self._paths = tuple(paths)
        self._checked: dict[Path, tuple[int, int, int]] = {}  # what the file was then

    def __call__(self) -> Iterator[Counts]:
        """Goes through all, in order, one in memory at a time.

        Raises:
            UserError: One is not there, or damaged.
        """
        for path in self._paths:
            state = _state_of(path)
            yield Counts.load(path, check=state is None or self._checked.get(path) != state)
            if state is not None:
                self._checked[path] = state


def _state_of(path: Path) -> tuple[int, int, int] | None:
    """Another one as soon as the file was written anew; None where there is none."""
    if not path.exists():
        return None
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _identity(path: Path, metadata: Mapping[str, str]) -> tuple[CountSettings, tuple[CountedBlocks, ...]]:
    try:
        parts = tuple(CountedBlocks(**part) for part in json.loads(metadata["parts"]))
        return CountSettings.of_metadata(metadata), parts
    except KeyError as error:
        raise UserError(f"{path} lacks {error}; {_AGAIN}") from error


def _check_alike(first: Counts, second: Counts) -> None:
    for name, ours in asdict(first.settings).items():
        theirs = asdict(second.settings)[name]
        if name != "model_id" and ours != theirs:  # one model may lie in two folders; its fingerprint tells
            raise UserError(
                f"counts differ in {name} ({ours} and {theirs}) and cannot be merged; count both with the "
                f"same {name}"
            )
    for name in ("active", *_OPTIONAL):
        ours, theirs = (_shape(getattr(counts, name)) for counts in (first, second))
        if ours != theirs:
            raise UserError(
                f"counts differ in the shape of {name} ({ours} and {theirs}) and cannot be merged"
            )
    for part in first.parts:
        for other in second.parts:
            if part.overlaps(other):
                raise UserError(
                    f"counts of {first.settings.language} share text: blocks {part.start}–{part.stop} and "
                    f"{other.start}–{other.stop} of corpus "
                    f"{part.corpus_fingerprint[:16]}; merge counts of different text only"
                )


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else first + second


def _shape(tensor: Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape)
