"""Transformer of speech-to-video."""

from wan.modules.s2v.model import WanModel_S2V

__all__ = ["WanModel_S2V"]
