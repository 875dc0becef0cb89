"""Several language packs as one: exact where their neurons are disjoint, by a named rule where they are shared.

Beside pack.py.

Shape legend: n neurons of one layer, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lape_ds.errors import UserError
from lape_ds.model.ffn import Projection
from lape_ds.subnetwork.entries import bits
from lape_ds.subnetwork.pack import Pack
from lape_ds.subnetwork.vectors import Vectors

SharedRule = Literal["refuse", "first", "mean-of-changes"]
SHARED_RULES: tuple[SharedRule, ...] = get_args(SharedRule)


@dataclass(frozen=True)
class Composition:
    """What became of several packs.

    Attributes:
        pack: All of them in one.
        num_shared: Neurons that two of them or more have.
        shared_by_pair: Likewise of each two that share any, by their numbers, from 0.
        report: That, and the rule by which they were taken, in one line.
    """

    pack: Pack
    num_shared: int
    shared_by_pair: dict[tuple[int, int], int]
    report: str


def compose(packs: Sequence[Pack], *, shared: SharedRule = "refuse") -> Composition:
    """Puts several languages' packs into one. A neuron that one of them has is as that pack has it, bit for bit.

    Args:
        packs: Two or more, of one base model and one dtype.
        shared: What becomes of a neuron that several have. `refuse`: nothing is made. `first`: it is as in the first of
            them. `mean-of-changes`: the base's values plus the mean of what each changed, in float64, rounded once.

    Raises:
        UserError: Fewer than two packs, packs of several bases or dtypes, or shared neurons without a rule for them.
    """
    _check_alike(packs)
    by_pair = _shared_by_pair(packs)
    everything = torch.cat([pack.neurons for pack in packs])
    neurons, times = everything.unique(dim=0, return_counts=True)
    num_shared = int((times > 1).sum())
    if num_shared and shared == "refuse":
        raise UserError(
            f"{num_shared:,} of {len(neurons):,} neurons are in several packs ({_pairs(packs, by_pair)}), each time with other "
            "values: name a rule, --shared first (as in the first pack that has them) or --shared mean-of-changes"
        )
    layers = [int(layer) for layer in neurons[:, 0].unique()]
    new: Vectors = {layer: {} for layer in layers}
    base: Vectors = {layer: {} for layer in layers}
    for layer in layers:
        holders = [pack for pack in packs if layer in pack.new]
        for projection in holders[0].new[layer]:
            new[layer][projection], base[layer][projection] = _merged(holders, layer, projection, shared)
    origin = {
        "composed_of": [{"languages": pack.languages, "origin": dict(pack.origin)} for pack in packs],
        "shared_neurons": num_shared,
        "shared_rule": shared,
    }
    composed = Pack(
        neurons=neurons,
        new=new,
        base=base,
        base_fingerprint=packs[0].base_fingerprint,
        base_model=packs[0].base_model,
        languages=tuple(dict.fromkeys(code for pack in packs for code in pack.languages)),
        origin=origin,
        base_revision=packs[0].base_revision,
    )
    report = "no neuron is in two packs: every one is as its pack has it"
    if num_shared:
        report = f"{num_shared:,} neurons are in several packs ({_pairs(packs, by_pair)}) and were taken by the rule {shared}"
    return Composition(composed, num_shared, by_pair, report)


def _check_alike(packs: Sequence[Pack]) -> None:
    if len(packs) < 2:
        raise UserError(
            f"{len(packs)} language pack given: name two or more to compose, and the file to write"
        )
    first = packs[0]
    for pack in packs[1:]:
        if pack.base_fingerprint != first.base_fingerprint:
            raise UserError(
                f"the packs are of two base models: {first.title} was made on {first.base_model} with weights "
                f"{first.base_fingerprint[:16]}, {pack.title} on {pack.base_model} with weights {pack.base_fingerprint[:16]}; "
                "compose packs of one base"
            )
        if pack.dtype != first.dtype:
            raise UserError(
                f"the pack of {first.title} is of a training in {first.dtype}, that of {pack.title} in {pack.dtype}; compose "
                "packs of one dtype"
            )


def _shared_by_pair(packs: Sequence[Pack]) -> dict[tuple[int, int], int]:
    own = [set(map(tuple, pack.neurons.tolist())) for pack in packs]
    pairs = [(a, b) for a in range(len(packs)) for b in range(a + 1, len(packs))]
    return {(a, b): len(own[a] & own[b]) for a, b in pairs if own[a] & own[b]}


def _merged(
    holders: Sequence[Pack], layer: int, projection: Projection, rule: SharedRule
) -> tuple[Tensor, Tensor]:
    """One projection of one layer: new and base vectors of all its neurons, [n, D] each, sorted by neuron."""
    index = torch.cat([pack.index(layer) for pack in holders])
    news, bases = (
        torch.cat([side[layer][projection] for side in sides])
        for sides in ([pack.new for pack in holders], [pack.base for pack in holders])
    )
    neurons, place = index.unique(return_inverse=True)
    first = torch.full_like(neurons, len(index)).scatter_reduce(0, place, torch.arange(len(index)), "amin")
    # Of one base, as their fingerprints say: the values there are the same whoever holds them.
    assert torch.equal(bits(bases), bits(bases[first][place])), (layer, projection)
    new, base = news[first], bases[first]
    if rule != "mean-of-changes":
        return new, base
    times = place.bincount(minlength=len(neurons))
    changes = torch.zeros(*new.shape, dtype=torch.float64).index_add_(
        0, place, news.double() - bases.double()
    )
    mean = (base.double() + changes / times[:, None]).to(new)
    return torch.where((times > 1)[:, None], mean, new), base


def _pairs(packs: Sequence[Pack], shared_by_pair: Mapping[tuple[int, int], int]) -> str:
    return "; ".join(
        f"{packs[a].title} and {packs[b].title} {number:,}" for (a, b), number in shared_by_pair.items()
    )
