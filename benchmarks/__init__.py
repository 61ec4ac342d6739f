"""Measurements, one command per table: python -m benchmarks.dit | vae | t5 | load | parallel; --save writes it."""
