"""Measures what training changed in the weights, of the model before and after; a piece of a matrix at a time.

Below updates.py, which keeps the numbers. On the CPU both models stay in their files' pages; what is computed of them, in
float64, is on the GPU if there is one.

Shape legend: n vectors that changed, D length of each (hidden size in the feed-forward parts), R runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lape_ds.analysis.training.run import AnalyzedRun
from lape_ds.analysis.training.updates import Directions, PartDirections, PartUpdate, Updates
from lape_ds.errors import UserError
from lape_ds.model.ffn import decoder_layers, ffn_layers
from lape_ds.runlog import progress
from lape_ds.subnetwork.entries import bits

_PIECE = 1 << 22  # elements at a time: 32 MB in float64


@dataclass(frozen=True)
class Part:
    """Weights that are told of together.

    Attributes:
        name: As `PartUpdate.part`.
        layer: None outside the decoder layers.
        places: Parameters, each with the rows of it (in a mixture: of each expert) that are meant; None: all.
        axis: Along which its vectors are counted: rows (0) or columns (1); None where it holds no matrix.
    """

    name: str
    layer: int | None
    places: tuple[tuple[str, slice | None], ...]
    axis: Literal[0, 1] | None

    def matrices(self, model: nn.Module) -> Iterator[Tensor]:
        """Its weights in a model, a matrix each whose rows are its vectors; of vectors alone, matrices of one row."""
        for name, rows in self.places:
            weight = model.get_parameter(name).detach()
            for matrix in weight if weight.dim() == 3 else [weight.view(-1, weight.shape[-1])]:
                chosen = matrix if rows is None else matrix[rows]
                yield chosen.t() if self.axis == 1 else chosen


def model_parts(model: PreTrainedModel) -> list[Part]:
    """All weights of a model, each in one part: layer by layer, feed-forward first, then what is outside the layers.

    Args:
        model: Of an architecture that model/ffn.py knows, not partitioned.
    """
    found: list[Part] = []
    names = {id(param): name for name, param in model.named_parameters()}
    for layer, module in zip(ffn_layers(model), decoder_layers(model), strict=True):
        for part in layer.slices:
            rows = slice(part.offset, part.offset + layer.neurons_per_expert) if part.axis == 0 else None
            found.append(Part(part.projection, layer.index, ((part.parameter_name, rows),), part.axis))
        own = {part.parameter_name for part in layer.slices}
        inside = {names.pop(id(param)): place for place, param in module.named_parameters()}
        found += _others(
            {name: place for name, place in inside.items() if name not in own}, model, layer.index
        )
    outside = {name: name for name in names.values()}
    ends = {"head": model.get_output_embeddings(), "embeddings": model.get_input_embeddings()}
    for place, module in ends.items():  # tied: the embeddings
        outside |= {
            names[id(param)]: place
            for param in (module.parameters() if module is not None else ())
            if id(param) in names and param.dim() == 2
        }
    return found + _others(outside, model, None)


def _others(places: dict[str, str], model: nn.Module, layer: int | None) -> list[Part]:
    """A part for every matrix, called by its place, and one for all vectors together."""
    dims = {name: model.get_parameter(name).dim() for name in places}
    parts = [
        Part(place.removesuffix(".weight"), layer, ((name, None),), 0)
        for name, place in places.items()
        if dims[name] >= 2
    ]
    vectors = tuple((name, None) for name in places if dims[name] < 2)
    return parts + ([Part("vectors", layer, vectors, None)] if vectors else [])


def measure_updates(run: AnalyzedRun) -> Updates:
    """What a run changed, between its base and its exported model (or language pack), both in the dtype of the training.

    Raises:
        UserError: It was not exported, or its base is not there as it was.
    """
    trained = run.trained
    before, after = run.load_base(), run.load_trained()
    parts = [
        measure_part(part, before, after)
        for part in progress(model_parts(before), f"Weight updates of {run.name}", unit="parts")
    ]
    return Updates(run.subject(run.base, trained), run.recipe.model.dtype, tuple(parts))


@torch.no_grad()
def measure_part(part: Part, before: nn.Module, after: nn.Module) -> PartUpdate:
    """The change of one part; see `PartUpdate` for what is measured."""
    device = _device()
    squares = torch.zeros(
        4, dtype=torch.float64, device=device
    )  # of W, dW, W where it changed; dot of dW with W
    numel = num_changed = num_vectors = width = 0
    spectrum = _Spectrum()
    for old, new in zip(part.matrices(before), part.matrices(after), strict=True):
        numel, num_vectors, width = numel + old.numel(), num_vectors + len(old), old.shape[1]
        for was, now in zip(_pieces(old), _pieces(new), strict=True):
            differs = (bits(was) != bits(now)).to(device)
            num_changed += int(differs.sum())
            weights = was.to(device, torch.float64)
            change = now.to(device, torch.float64) - weights
            sums = [weights.square(), change.square(), weights.square() * differs, weights * change]
            squares += torch.stack([values.sum() for values in sums])
            if part.axis is not None:
                spectrum.add(change[differs.any(1)])
    norm, change_norm, changed_norm = squares[:3].sqrt().tolist()
    ranks = None if part.axis is None or change_norm == 0 else spectrum.singular_values()
    return PartUpdate(
        part=part.name,
        layer=part.layer,
        num_weights=numel,
        num_changed=num_changed,
        norm=norm,
        change_norm=change_norm,
        changed_norm=changed_norm,
        dot=float(squares[3]),
        effective_rank=None if ranks is None else effective_rank(ranks),
        stable_rank=None if ranks is None else stable_rank(ranks),
        full_rank=None if part.axis is None else min(num_vectors, width),
    )


def _pieces(matrix: Tensor, num_at_once: int = _PIECE) -> Iterator[Tensor]:
    """Rows of a matrix, some at a time; contiguous, as columns of the weight are not."""
    for rows in matrix.split(max(1, num_at_once // matrix.shape[1])):
        yield rows.contiguous()


class _Spectrum:
    """The singular values of vectors [n, D] that come in pieces, by the smaller of their two Gram matrices."""

    def __init__(self) -> None:
        self._vectors: list[Tensor] = []
        self._gram: Tensor | None = None

    def add(self, vectors: Tensor) -> None:
        """Takes float64 [m, D] more."""
        self._vectors.append(vectors)
        width = vectors.shape[1]
        if self._gram is not None or sum(map(len, self._vectors)) > width:
            together = torch.cat(self._vectors)
            gram = together.T @ together
            self._gram = gram if self._gram is None else self._gram.add_(gram)
            self._vectors = []

    def singular_values(self) -> Tensor:
        """float64 [min(n, D)]; those that rounding cannot tell from 0 are 0."""
        gram = self._gram
        if gram is None:
            together = torch.cat(self._vectors)
            gram = together @ together.T
        squares = torch.linalg.eigvalsh(gram)
        least = squares.max() * len(squares) * torch.finfo(squares.dtype).eps
        return squares.where(squares > least, 0).sqrt()


def effective_rank(singular_values: Tensor) -> float:
    """Exp of the entropy of the singular values, normalised to sum 1: k for k equal ones.

    Source: Roy and Vetterli, The effective rank: a measure of effective dimensionality, EUSIPCO 2007.
    """
    shares = singular_values[singular_values > 0] / singular_values.sum()
    return math.exp(float(-(shares * shares.log()).sum()))


def stable_rank(singular_values: Tensor) -> float:
    """Squared Frobenius norm over squared spectral norm: k for k equal ones."""
    squares = singular_values.square()
    return float(squares.sum() / squares.max())


@torch.no_grad()
def measure_directions(runs: Sequence[AnalyzedRun]) -> Directions:
    """Cosines between the changes of every two runs of one base.

    Raises:
        UserError: They began with different weights or in different dtypes, or one was not exported.
    """
    starts = {(run.facts["model_fingerprint"], run.recipe.model.dtype) for run in runs}
    if len(starts) > 1:
        raise UserError(
            f"the runs began with {len(starts)} different base models (or dtypes of one): only changes of the same weights have "
            "an angle between them; give runs of one base"
        )
    device, inputs = _device(), (runs[0].base, *(run.trained for run in runs))
    before, trained = runs[0].load_base(), [run.load_trained() for run in runs]
    parts = []
    for part in progress(model_parts(before), "Angles between weight updates", unit="parts"):
        dots_RR = torch.zeros(len(runs), len(runs), dtype=torch.float64, device=device)
        for old, *new in zip(
            part.matrices(before), *(part.matrices(model) for model in trained), strict=True
        ):
            pieces = (_pieces(matrix, _PIECE // len(runs)) for matrix in (old, *new))
            for was, *now in zip(*pieces, strict=True):
                weights = was.to(device, torch.float64)
                changes = torch.stack([(one.to(device, torch.float64) - weights).view(-1) for one in now])
                dots_RR += changes @ changes.T
        parts.append(PartDirections(part.name, part.layer, tuple(map(tuple, dots_RR.tolist()))))
    return Directions(tuple(run.name for run in runs), inputs, tuple(parts))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
