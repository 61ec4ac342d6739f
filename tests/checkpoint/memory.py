"""Source of tensors in memory, for tests of loading."""

from collections.abc import Mapping

import torch
from torch import Tensor

from wan.checkpoint.source import TensorSource


class MemorySource(TensorSource):
    """Tensors of a state dict in memory."""

    def __init__(self, tensors: Mapping[str, Tensor], description: str = "a state dict"):
        self.tensors = tensors
        self.description = description

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self.tensors[name].dtype

    def get(self, name: str) -> Tensor:
        return self.tensors[name]
