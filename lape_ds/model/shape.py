"""Sizes of a model, as tables and checks want them.

Beside ffn.py, which knows where they stand in every architecture.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from lape_ds.model.ffn import ffn_layers, full_shape


@dataclass(frozen=True)
class ModelShape:
    """What the stage must know of a model, from its config alone."""

    num_layers: int
    neurons_per_layer: int
    experts_per_layer: int
    parameters_per_neuron: int
    num_parameters: int


def model_shape(model: PreTrainedModel) -> ModelShape:
    """Sizes of a model, which may be a skeleton.

    Raises:
        UserError: The architecture is not supported.
    """
    layers = ffn_layers(model)
    first = layers[0]
    one_neuron = [full_shape(weight.parameter)[-2:][1 - weight.axis] for weight in first.slices]
    num_parameters = sum(full_shape(parameter).numel() for parameter in model.parameters())
    return ModelShape(len(layers), first.num_neurons, first.num_experts, sum(one_neuron), num_parameters)
