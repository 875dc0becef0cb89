"""What a training run did, measured and drawn: its course, its weights' change, activations, whose neurons it trained."""
