"""Weights on disk: named tensors, the layouts they come in, and filling any module with them."""
