"""Exponential moving average of weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from wan.values import whole


class EMA:
    """Float32 running average of a module's parameters. In a short run the initial weights do not dominate it."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self._live = dict(module.named_parameters())
        self.average = {name: p.detach().clone().float() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the live weights; the decay ramps up as (1 + n) / (10 + n) until it reaches its value."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        live = [p.detach().float() for p in self._live.values()]
        torch._foreach_lerp_(list(self.average.values()), live, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the averaged weights within the block, and its own ones after it."""
        own = {name: p.detach().clone() for name, p in self._live.items()}
        self.copy_to_module()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self._live.items():
                    p.copy_(own[name])

    @torch.no_grad()
    def copy_to_module(self) -> None:
        """Replace the live weights by the averages for good."""
        for name, p in self._live.items():
            p.copy_(self.average[name])

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: dict) -> None:
        self.updates = whole("updates", state["updates"])
        with torch.no_grad():
            for name, value in self.average.items():
                value.copy_(state["average"][name].reshape(value.shape))
