"""Measuring checkpoints: suites of lm-eval tasks, run alike over several models and set side by side."""
