"""From activations to neuron sets: counting, LAPE selection, the artefacts and their published format."""
