"""Condition channels of given frames: a mask of their places, and the latent of a clip that holds them."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from einops import rearrange
from torch import Tensor


def condition(encode: Callable[[list[Tensor]], list[Tensor]], frames: Mapping[int, Tensor], frame_num: int) -> Tensor:
    """Make the channels y [4 + z, T, h, w] beside a latent: the mask, and the latent of a clip with the frames."""
    latent = encode([condition_clip(frames, frame_num)])[0]
    return torch.cat([condition_mask(frames, frame_num, latent.shape[1:]).to(latent), latent])


def condition_clip(frames: Mapping[int, Tensor], frame_num: int) -> Tensor:
    """Make a clip [3, frame_num, H, W] for the VAE: the given frames [3, H, W] at their indices, mid grey elsewhere."""
    some = next(iter(frames.values()))
    clip = some.new_zeros(some.shape[0], frame_num, *some.shape[1:])
    for index, frame in frames.items():
        clip[:, index] = frame
    return clip


def condition_mask(given: Iterable[int] | Tensor, frame_num: int, latent: Sequence[int]) -> Tensor:
    """Make mask channels [4, T, h, w] for a latent of (T, h, w): 1 where the video is given.

    `given` are the indices of whole frames, or values per pixel [frame_num, H, W]; a latent position takes the value of
    its upper left pixel. The four channels are the four frames of a latent frame. The first latent frame has one frame,
    four times.
    """
    if isinstance(given, Tensor):
        rows, columns = (side // cells for side, cells in zip(given.shape[1:], latent[1:], strict=True))
        frames = given[:, ::rows, ::columns]
    else:
        frames = torch.zeros(frame_num, *latent[1:])
        frames[list(given)] = 1
    return rearrange(torch.cat([frames[:1].expand(3, -1, -1), frames]), "(t c) h w -> c t h w", c=4)
