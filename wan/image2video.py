"""Image to video: a first frame becomes mask and latent channels that condition every step."""

import torch
import torch.nn.functional as F
from torch import Tensor

from wan.geometry import first_frame_mask


def resize_first_frame(image: Tensor, height: int, width: int) -> Tensor:
    """[3, h, w] in [-1, 1] -> [3, height, width]: bicubic, neither antialiased nor clamped, as the model was trained.

    Values overshoot [-1, 1]. Large photos alias; resize them beforehand if that shows.
    """
    return F.interpolate(image[None], size=(height, width), mode="bicubic", align_corners=False)[0]


def first_frame_clip(frame: Tensor, frame_num: int) -> Tensor:
    """VAE input [3, frame_num, H, W]: the frame [3, H, W], then mid grey."""
    clip = frame.new_zeros(frame.shape[0], frame_num, *frame.shape[1:])
    clip[:, 0] = frame
    return clip


def image_condition(latent: Tensor) -> Tensor:
    """Latent [16, F, H, W] of a first_frame_clip -> y [20, F, H, W], four mask channels in front: 1 where given.

    Four, because each stands for one of the video frames that a latent covers.
    """
    given = 1 - first_frame_mask((4, *latent.shape[1:])).to(latent)
    return torch.cat([given, latent])
