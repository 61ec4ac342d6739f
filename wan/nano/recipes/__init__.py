"""Recipes of the embedded miniature family: one file per task, run by `python -m wan.nano.recipes`."""
