"""What neuron sets are worth: shared with whom, how stable, how specific, after script or language."""
