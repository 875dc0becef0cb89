"""How much a step must compute.

Beside the contenders. Products with weights and attention are counted, each multiplication and addition as one;
causal attention as if it were full, as is usual (arXiv 2204.02311, appendix B). Recomputation is not counted.
"""

from __future__ import annotations

from lape_ds.bench.shapes import Shape


def linear_weights(shape: Shape) -> tuple[int, int]:
    """Weights of one layer's linear modules, and of the head."""
    config = shape.config
    hidden, heads, kv_heads = (
        config["hidden_size"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
    )
    head_size = config.get("head_dim", hidden // heads)
    attention = hidden * head_size * (2 * heads + 2 * kv_heads)
    return attention + 3 * hidden * shape.num_neurons, hidden * config["vocab_size"]


def model_flops(shape: Shape, method: str, *, num_trained: int, first_layer: int) -> int:
    """What one step of a method must compute: forward, back to the first layer that trains, gradients of what trains.

    Args:
        shape: The model and its batch.
        method: One of the contenders' names.
        num_trained: Weights that train.
        first_layer: The first layer in which something trains; layers are counted whole.
    """
    config, tokens = shape.config, shape.num_tokens
    layer, head = linear_weights(shape)
    head_size = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    attention = 4 * tokens * shape.sequence_length * config["num_attention_heads"] * head_size
    forward = shape.num_layers * (2 * tokens * layer + attention) + 2 * tokens * head
    reached = shape.num_layers - first_layer
    backward = reached * (2 * tokens * layer + 2 * attention) + 2 * tokens * head
    match method:
        case "full":
            gradients = 2 * tokens * (shape.num_layers * layer + head)
        case (
            "lora_ffn" | "lora_all"
        ):  # weights beside the model's own: they have a forward and a backward too
            gradients = 6 * tokens * num_trained
        case "floor":
            gradients = 0
        case _:
            gradients = 2 * tokens * num_trained
    return forward + backward + gradients
