"""Reuse of what the blocks of a transformer added at an earlier step, where the input has hardly changed.

The first block always runs. If it adds nearly the same to the residual stream as when all blocks ran last, the others
are taken to add the same as then. This is first-block caching; it changes the video.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from wan.modules.model import WanAttentionBlock
from wan.modules.steps import Conditioning, Step, Tokens

RunBlocks = Callable[[Iterable[Step], Tokens, Conditioning], Tokens]
SAMPLED = 8  # one of so many tokens is compared


class BlockCache:
    """Cache of one clip and branch of guidance. It forgets its values when another transformer takes over.

    `threshold` is the relative change, in L1, of what the first block adds, up to which the other blocks are left out.
    Residuals are kept in `dtype`. A decision asks the device for one value.
    """

    def __init__(self, threshold: float, dtype: torch.dtype):
        self.threshold, self.dtype = threshold, dtype
        self.calls = self.reused = 0
        self._block: nn.Module | None = None  # the first one of the transformer that the values are of
        self._first: Tensor | None = None  # what it added, of some tokens
        self._others: Tensor | None = None  # what all behind it added

    def run(self, run: RunBlocks, steps: Sequence[Step], tokens: Tokens, cond: Conditioning) -> Tokens:
        """Apply the steps of a trunk by `run`, or only those up to the first block, and the last."""
        place = next(i for i, step in enumerate(steps) if isinstance(step.modules[0], WanAttentionBlock))
        (block,) = steps[place].modules
        before = run(steps[:place], tokens, cond) if place else tokens
        tokens = run(steps[place : place + 1], before, cond)
        first = (tokens.x - before.x)[:, ::SAMPLED]
        self.calls += 1
        if block is self._block and self._is_near(first):
            self.reused += 1
            tokens = tokens._replace(x=tokens.x + self._others)
        else:
            after = run(steps[place + 1 : -1], tokens, cond)
            self._block, self._first = block, first
            self._others = (after.x - tokens.x).to(self.dtype)
            tokens = after
        return run(steps[-1:], tokens, cond)

    def _is_near(self, first: Tensor) -> bool:
        change, size = (first - self._first).abs().mean(), self._first.abs().mean()
        return bool(change <= self.threshold * size)
