"""One micro-batch of a method on the meta device: what it keeps, what it computes, in which order it needs which weight.

First on the plan's way. The model is the training's own, prepared as training prepares it; only the values are missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from deepspeed.runtime.zero.linear import zero3_linear_wrap
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lape_ds.model.ffn import decoder_layers, logit_head
from lape_ds.model.loss import chunk_rows
from lape_ds.model.meters import SavedForBackward, count_flops, peak_bytes
from lape_ds.recipe import TrainSection
from lape_ds.subnetwork.methods import prepare
from lape_ds.subnetwork.recomputing import recompute_layers
from lape_ds.training.memory import Contents, contents_of

Checkpointing = Literal["none", "non_reentrant", "reentrant"]
KINDS: tuple[Checkpointing, ...] = ("none", "non_reentrant")  # that are planned
META = torch.device("meta")


@dataclass(frozen=True)
class Affine:
    """A cost of B blocks: `constant + per_block * B`."""

    constant: float
    per_block: float

    @classmethod
    def through(cls, one: float, many: float, blocks: int) -> Affine:
        """By its values for one block and for `blocks`."""
        slope = (many - one) / (blocks - 1)
        return cls(one - slope, slope)

    def of(self, blocks: float) -> float:
        """Its value for so many blocks."""
        return self.constant + self.per_block * blocks


@dataclass(frozen=True)
class Use:
    """A module that computes, and the parameters that it must have whole: (number of the parameter, elements)."""

    parameters: tuple[tuple[int, int], ...]

    @cached_property
    def numel(self) -> int:
        """Elements of all of them."""
        return sum(numel for _, numel in self.parameters)


@dataclass(frozen=True)
class Head:
    """The output projection and the loss, which computes logits in chunks (model/loss.py).

    Attributes:
        vocab_size: Tokens, V.
        hidden_size: D.
        element_size: Bytes of a weight.
        trains: Whether the projection does.
        capped: Whether logits have a soft cap, which needs them and the probabilities at once.
    """

    vocab_size: int
    hidden_size: int
    element_size: int
    trains: bool
    capped: bool

    def logit_bytes(self, tokens: int, device: torch.device, *, anchored: bool) -> int:
        """Of the largest chunk: in the model's dtype, in fp32 unless it is that, and the base's in both with a KL anchor."""
        rows = min(tokens, chunk_rows(self.vocab_size, device))
        in_place = self.element_size == 4 and not self.capped
        each = self.element_size + (0 if in_place else 4)
        return rows * self.vocab_size * (each + (self.element_size + 8 if anchored else 0))

    def kept_bytes(self, tokens: int) -> int:
        """Gradients that the loss makes in forward and keeps for backward."""
        return self.element_size * self.hidden_size * (tokens + (self.vocab_size if self.trains else 0))

    def flops(self, tokens: int) -> int:
        """Logits, the gradient of the hidden states, and that of the projection if it trains."""
        return (6 if self.trains else 4) * tokens * self.vocab_size * self.hidden_size


@dataclass(frozen=True)
class Profile:
    """A method with or without checkpointing.

    Attributes:
        contents: Of the prepared model.
        saved: Bytes that the layers keep between forward and backward, by blocks.
        working: Bytes that backward takes beside them at its worst moment: one layer's, recomputed, and its gradients.
        flops: Of the layers for one block, as executed: recomputation counts.
        forward_flops: Of the layers in forward alone: what a KL anchor adds.
        head: What comes after the layers.
        uses: Of weights, in the order of one micro-batch, forward and backward.
        block_length: Tokens of a block.
    """

    contents: Contents
    saved: Affine
    working: Affine
    flops: int
    forward_flops: int
    head: Head
    uses: tuple[Use, ...]
    block_length: int


def profile(
    skeleton: PreTrainedModel,
    train: TrainSection,
    neurons: Tensor | None,
    checkpointing: Checkpointing,
    *,
    largest: int,
    partitioned: bool,
) -> Profile:
    """Prepares the method in a skeleton and takes it through a micro-batch of one block and of many.

    What is kept grows in proportion to the blocks. What backward takes beside it is the most of several moments and grows by
    pieces; between the two measured numbers of blocks the line is above it or on it.

    Args:
        skeleton: On the meta device, of its own: it is changed in place.
        train: The recipe's section, with the method's settings; `lora.r` a number.
        neurons: integer [n, 2] for the methods that train neurons.
        checkpointing: Of the layers.
        largest: Most blocks that will be asked for.
        partitioned: As ZeRO-3 runs it, whose linear keeps its input for backward where torch's, if frozen, does not.
    """
    many = max(2, largest)
    bare: Any = skeleton  # transformers' `to` has no types that a checker follows
    model: PreTrainedModel = bare.to(META).train()
    trained = prepare(model, train, neurons)
    recompute_layers(model, checkpointing)
    with _linear(zero3_linear_wrap if partitioned else functional.linear):
        one, more = (_measure(model, blocks, train.block_length) for blocks in (1, many))
        forward_flops, flops = _flops(model, train.block_length)
    found = logit_head(model)
    weight = found.linear.weight
    vocab_size, hidden_size = weight.shape
    return Profile(
        contents=contents_of(model, trained),
        saved=Affine.through(one.saved, more.saved, many),
        working=Affine.through(one.working, more.working, many),
        flops=flops,
        forward_flops=forward_flops,
        head=Head(
            vocab_size,
            hidden_size,
            weight.element_size(),
            trains=weight.requires_grad,
            capped=found.softcap is not None,
        ),
        uses=_uses(model, train.block_length, recomputed=checkpointing != "none"),
        block_length=train.block_length,
    )


@contextmanager
def _linear(function: Any) -> Iterator[None]:
    """Lets modules use another `linear`, as DeepSpeed's `zero.Init` does for good."""
    before = functional.linear
    functional.linear = function
    try:
        yield
    finally:
        functional.linear = before


@dataclass(frozen=True)
class _Measured:
    saved: int
    working: int


def _measure(model: PreTrainedModel, blocks: int, length: int) -> _Measured:
    input_ids = _input_ids(blocks, length)
    existing = [*model.parameters(), *model.buffers(), input_ids]
    kept: list[int] = []

    def work() -> None:
        with SavedForBackward(excluding=existing) as saved:
            hidden = model.base_model(input_ids=input_ids, use_cache=False)[0]
        kept.append(saved.num_bytes())
        hidden.backward(torch.empty_like(hidden))

    with _gradients_taken_away(model):
        peak = peak_bytes(work, META, existing)
    return _Measured(kept[0], max(0, peak - kept[0]))


def _flops(model: PreTrainedModel, length: int) -> tuple[int, int]:
    """Of one block: forward alone, and all. By itself: torch's counter holds on to every module's input."""
    with _gradients_taken_away(model), count_flops() as flops:
        hidden = model.base_model(input_ids=_input_ids(1, length), use_cache=False)[0]
        forward = flops()
        hidden.backward(torch.empty_like(hidden))
    return forward, flops()


@contextmanager
def _gradients_taken_away(model: nn.Module) -> Iterator[None]:
    """As they come, which is what DeepSpeed does."""
    hooks = [
        param.register_post_accumulate_grad_hook(lambda param: setattr(param, "grad", None))
        for param in model.parameters()
        if param.requires_grad
    ]
    yield
    for hook in hooks:
        hook.remove()


def _input_ids(blocks: int, length: int) -> Tensor:
    return torch.zeros(blocks, length, dtype=torch.int64, device=META)


def _uses(model: PreTrainedModel, length: int, *, recomputed: bool) -> tuple[Use, ...]:
    """Forward by calling it; backward in reverse, from the first module on that trains.

    DeepSpeed counts modules without weights too. A layer is recomputed when backward first asks for something it has kept,
    which is behind its last weight.
    """
    numbers = {id(param): number for number, param in enumerate(model.parameters())}
    begun, done = _calls(model, length)
    around = [nn.Module(), model.get_output_embeddings()]  # the loss module, and its head
    first = next(i for i, module in enumerate([*done, around[1]]) if _trains(module))
    layer_of = {id(part): layer for layer in decoder_layers(model) for part in layer.modules()}
    order = [around[0], *begun, around[1], *around]
    seen: set[int] = set()
    for module in reversed(done[first:]):
        order.append(module)
        layer = layer_of.get(id(module))
        if recomputed and layer is not None and id(layer) not in seen and _needed(module):
            seen.add(id(layer))
            order += [part for part in begun if layer_of.get(id(part)) is layer and part is not layer]
    return tuple(
        Use(tuple((numbers[id(param)], param.numel()) for param in _needed(module))) for module in order
    )


def _calls(model: PreTrainedModel, length: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules that a forward pass calls, as they begin and as they are done."""
    begun: list[nn.Module] = []
    done: list[nn.Module] = []
    hooks: list[Any] = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(lambda module, _: begun.append(module)))
        hooks.append(module.register_forward_hook(lambda module, *_: done.append(module)))
    with torch.no_grad():
        model.base_model(input_ids=_input_ids(1, length), use_cache=False)
    for hook in hooks:
        hook.remove()
    return begun, done


def _needed(module: nn.Module) -> list[nn.Parameter]:
    """What must be whole when a module is called: its own parameters, those that it has registered, and in containers."""
    external: dict[int, nn.Parameter] = getattr(module, "_external_params", {})
    contained = [
        param
        for child in module.children()
        if isinstance(child, nn.ParameterDict | nn.ParameterList)  # of (IA)³: nobody calls it
        for param in child.parameters(recurse=False)
    ]
    found = (*module.parameters(recurse=False), *external.values(), *contained)
    return list({id(param): param for param in found}.values())


def _trains(module: nn.Module) -> bool:
    return any(param.requires_grad for param in _needed(module))
