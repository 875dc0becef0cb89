"""Comparing models that are measured: differences, document by document, from the samples that `lape-ds eval` kept."""
