"""What is measured: model shapes with random weights, batches, and how many neurons train in each layer.

First in the benchmark's way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as fx_config
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lape_ds.errors import UserError
from lape_ds.model.meters import META_ATTENTION


@dataclass(frozen=True)
class Shape:
    """A model and the batch of one step.

    Attributes:
        model_type: Of transformers.
        config: What differs from the type's default configuration.
        dtype: Of weights and activations.
        batch_size: Rows of one step (B).
        sequence_length: Tokens of a row (T).
        checkpointing: Layers are recomputed in backward.
        large: Needs a GPU. There is no room for copies of the model then: methods that move whole weights share the
            base's and train at a learning rate of 0, the same arithmetic, which leaves every bit as it is.
    """

    model_type: str
    config: Mapping[str, Any]
    dtype: torch.dtype
    batch_size: int
    sequence_length: int
    checkpointing: bool
    large: bool

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return self.config["num_hidden_layers"]

    @property
    def num_neurons(self) -> int:
        """Neurons of a layer."""
        return self.config["intermediate_size"]

    @property
    def num_tokens(self) -> int:
        """Tokens of a step."""
        return self.batch_size * self.sequence_length


SHAPES: dict[str, Shape] = {
    "cpu-100m": Shape(
        "llama",
        {
            "hidden_size": 768,
            "intermediate_size": 2688,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "vocab_size": 8192,
        },
        torch.float32,
        batch_size=4,
        sequence_length=256,
        checkpointing=False,
        large=False,
    ),
    # As meta-llama/Llama-3.1-8B's config.json has it; rotary scaling beyond 8,192 tokens plays no part here.
    "llama-3.1-8b": Shape(
        "llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
        },
        torch.bfloat16,
        batch_size=1,
        sequence_length=2048,
        checkpointing=True,
        large=True,
    ),
    # As mistralai/Mistral-Nemo-Base-2407's config.json has it.
    "mistral-nemo-12b": Shape(
        "mistral",
        {
            "hidden_size": 5120,
            "intermediate_size": 14336,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 131072,
            "sliding_window": None,
        },
        torch.bfloat16,
        batch_size=1,
        sequence_length=2048,
        checkpointing=True,
        large=True,
    ),
}

# Neurons of Maltese per layer in the published sets (arXiv 2510.13580, K = 5 %), of 14,336 a layer.
_MALTESE: dict[str, tuple[int, ...]] = {
    "llama-3.1-8b": (
        *(7, 71, 1, 127, 2, 0, 2, 0, 1, 2, 1, 2, 0, 1, 4, 1),
        *(7, 9, 13, 11, 14, 21, 15, 21, 267, 350, 463, 588, 572, 258, 163, 21),
    ),
    "mistral-nemo-12b": (
        *(2, 65, 9, 42, 93, 17, 5, 1, 1, 4, 0, 1, 1, 2, 1, 1, 3, 2, 1, 15),
        *(15, 10, 5, 17, 19, 65, 61, 60, 103, 63, 169, 273, 314, 482, 472, 419, 349, 200, 142, 107),
    ),
}
NEURONS = ("uniform-1%", "mt")


def find_shape(name: str) -> Shape:
    """The shape of that name.

    Raises:
        UserError: There is none.
    """
    if name not in SHAPES:
        raise UserError(f"--shape {name}: no such shape; allowed: {', '.join(SHAPES)}")
    return SHAPES[name]


def choose_shape(name: str | None) -> tuple[str, Shape, torch.device]:
    """The shape of that name, or this machine's: the 100 M one, or Llama-3.1-8B's where there is a GPU.

    Returns:
        Its name, itself, and the device on which it runs; `check_runs` says whether it can.

    Raises:
        UserError: No such shape.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = name or ("llama-3.1-8b" if device.type == "cuda" else "cpu-100m")
    return name, find_shape(name), device


def check_runs(name: str, shape: Shape, device: torch.device) -> None:
    """Makes sure that a shape is none of those that need a GPU where there is none.

    Raises:
        UserError: It is.
    """
    if shape.large and device.type == "cpu":
        raise UserError(f"--shape {name} needs a GPU, and torch finds none; take --shape cpu-100m")


def neurons_per_layer(shape_name: str, kind: str) -> tuple[int, ...]:
    """How many neurons train in each layer.

    `mt` on a shape without a published set takes Llama's: each layer the share of the published layer at the same
    depth, so that empty layers stay empty.

    Raises:
        UserError: No such kind.
    """
    shape = SHAPES[shape_name]
    match kind:
        case "uniform-1%":
            return (round(shape.num_neurons / 100),) * shape.num_layers
        case "mt" if shape_name in _MALTESE:
            return _MALTESE[shape_name]
        case "mt":
            published, size = _MALTESE["llama-3.1-8b"], SHAPES["llama-3.1-8b"].num_neurons
            depths = [(layer + 0.5) / shape.num_layers for layer in range(shape.num_layers)]
            return tuple(
                round(published[int(depth * len(published))] / size * shape.num_neurons) for depth in depths
            )
    raise UserError(f"--neurons {kind}: no such choice; allowed: {', '.join(NEURONS)}")


def draw_neurons(counts: tuple[int, ...], num_neurons: int, seed: int) -> Tensor:
    """Random neurons, `counts[layer]` in each layer; int64 [n, 2] of (layer, index), sorted."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(num_neurons, generator=generator)[:count].sort().values for count in counts]
    layers = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return torch.stack([layers, torch.cat(drawn)], dim=1)


def build_model(shape: Shape, device: torch.device, seed: int) -> PreTrainedModel:
    """A model of random weights on a device, in training mode; on `meta` one without values, for a plan."""
    config = AutoConfig.for_model(
        shape.model_type, **shape.config, max_position_embeddings=shape.sequence_length, use_cache=False
    )
    attention = META_ATTENTION if device.type == "meta" else "sdpa"
    torch.manual_seed(seed)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=shape.dtype, attn_implementation=attention)
    return model.train()


@dataclass(frozen=True)
class Batch:
    """One step's tokens; every position is scored.

    Attributes:
        input_ids: int64 [B, T].
        targets: int64 [B, T], what each position predicts.
    """

    input_ids: Tensor
    targets: Tensor


def random_batch(shape: Shape, device: torch.device, seed: int) -> Batch:
    """Random tokens; the time of a step does not depend on which."""
    generator = torch.Generator().manual_seed(seed)
    size = (shape.batch_size, shape.sequence_length + 1)
    tokens = torch.randint(shape.config["vocab_size"], size, generator=generator).to(device)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


@contextmanager
def all_scored() -> Iterator[None]:
    """Lets the loss ask a meta tensor which positions are scored: all of them are, in our batches."""
    config: Any = fx_config
    with config.patch(meta_nonzero_assume_all_nonzero=True):
        yield
