"""What one step keeps in memory and computes, on a CPU, a GPU, or on the meta device, where nothing is computed.

Below training and benchmarks: a plan and a measurement are the same count of the same step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AttentionInterface

_ATEN = torch.ops.aten
# What torch does not count by itself: products added in place, and the attention kernel of a CPU.
_FLOPS: dict[Any, Callable[..., int]] = {
    _ATEN.addmm_: lambda total, left, right, *_, **__: 2 * left[0] * left[1] * right[1],
    _ATEN._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
        query, key, value
    ),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, query, key, value, *_, **__: (
        sdpa_backward_flop_count(grad, query, key, value)
    ),
}


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind some tensors, each counted once."""
    return sum({storage._cdata: storage.nbytes() for storage in _storages(tensors)}.values())


def _storages(tensors: Iterable[Tensor]) -> Iterator[torch.UntypedStorage]:
    for tensor in tensors:
        parts = [tensor._indices(), tensor._values()] if tensor.is_sparse else [tensor]
        yield from (part.untyped_storage() for part in parts)


class SavedForBackward:
    """Bytes that autograd keeps between forward and backward; the weights and inputs it refers to are not counted.

    Example:
        with SavedForBackward(excluding=model.parameters()) as saved:
            loss = model(batch)
        saved.num_bytes()  # while the loss lives
    """

    def __init__(self, *, excluding: Iterable[Tensor]) -> None:
        self._excluded = {storage._cdata for storage in _storages(excluding)}
        self._sizes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> SavedForBackward:
        self._hooks.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self._hooks.__exit__(*failure)

    def _pack(self, tensor: Tensor) -> Tensor:
        for storage in _storages([tensor]):
            key = storage._cdata
            if key not in self._excluded and key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                weakref.finalize(storage, self._sizes.pop, key)
        return tensor.detach()  # the tensor itself would hold the graph that holds it

    def num_bytes(self) -> int:
        """Of what is still kept: a part of the graph that led nowhere is gone by now."""
        return sum(self._sizes.values())


class _Allocations(TorchDispatchMode):
    """Follows the storages of all tensors that operators make; memory inside an operator is not seen."""

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self._held = list(_storages(existing))  # held, so that no new one takes the place of an old one
        self._sizes = {storage._cdata: 0 for storage in self._held}
        self._now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        for storage in _storages(tensors):
            key = storage._cdata
            if key not in self._sizes:
                self._sizes[key] = storage.nbytes()
                self._now += storage.nbytes()
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._free, key)
        return made

    def _free(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


def peak_bytes(work: Callable[[], object], device: torch.device, existing: Iterable[Tensor]) -> int:
    """How many bytes `work` needs at its worst moment beyond what there is before it.

    On a GPU by the allocator; elsewhere by following every tensor that an operator makes (on a CPU within 2 % of the
    allocator's own events).

    Args:
        work: Called once.
        device: Where it runs.
        existing: All tensors that it finds there.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _Allocations(existing) as allocations:
        work()
    return allocations.peak


@contextmanager
def count_flops() -> Iterator[Callable[[], int]]:
    """Floating-point operations of matrix products and attention inside the context, recomputation included.

    Causal attention is counted as if it were full, as is usual.
    """
    with FlopCounterMode(display=False, custom_mapping=_FLOPS) as counter:
        yield counter.get_total_flops


def _meta_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """What `sdpa` comes to on a real device; on meta tensors it would keep [T, T] matrices that no device keeps."""
    attended, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout, True, scale=scaling
    )
    return attended.transpose(1, 2).contiguous(), None


META_ATTENTION = "lape_ds_meta"  # an `attn_implementation` for models on the meta device
AttentionInterface.register(META_ATTENTION, _meta_attention)
