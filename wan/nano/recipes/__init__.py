"""How the embedded miniature family is made: one file per task, run by `python -m wan.nano.recipes`."""
