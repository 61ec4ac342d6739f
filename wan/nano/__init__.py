"""The embedded miniature family: a small world that can be measured, and checkpoints trained on it."""
