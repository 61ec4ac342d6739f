"""Preprocessing of character animation: from a driving video and a picture to the inputs of the generator."""
