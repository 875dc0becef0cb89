"""The language model: its feed-forward layout, how it is loaded, made and scored."""
