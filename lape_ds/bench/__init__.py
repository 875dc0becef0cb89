"""Benchmarks: every method's training step, and counting, beside what they are to be compared with."""
