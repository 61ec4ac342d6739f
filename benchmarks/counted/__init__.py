"""Counts of what the package would do on a GPU: `python -m benchmarks.counted`."""
