"""Seeded fuzzer of every kind of file that the program reads: input N is the same on every machine.

`python -m tests.faults 17 200-299` runs inputs through the real command, one forked process each, and prints what
ended wrongly. An input is right when it is refused in one clean message that names the file, before anything is
sampled, or when it is accepted and gives a sound video. Nothing else may happen: see `watch.verdict`.
"""
