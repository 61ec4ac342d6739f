"""Image-to-video (I2V-A14B): a first frame, a last one or both become channels that accompany the latent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from wan.framing import crop_to_aspect, place
from wan.images import bands
from wan.media import from_uint8
from wan.pipeline import Condition, OnStep, WanPipeline
from wan.request import Picture, Request

if TYPE_CHECKING:
    from PIL.Image import Image


class WanI2V(WanPipeline):
    """`WanI2V(config, checkpoint_dir).generate(prompt, img)` -> video [3, F, H, W] in [-1, 1]; see `WanPipeline`."""

    task = "i2v-A14B"

    def generate(
        self,
        input_prompt: str,
        img: Any = None,
        max_area: int = 720 * 1280,
        frame_num: int = 81,
        shift: float = 5.0,
        sample_solver: str = "unipc",
        sampling_steps: int = 40,
        guide_scale: float | tuple[float, float] = 5.0,
        n_prompt: str = "",
        seed: int = -1,
        offload_model: bool = True,
        *,
        last_image: Any = None,
        size: tuple[int, int] | None = None,
        fit: str = "area",
        on_step: OnStep | None = None,
    ) -> Tensor | None:
        """Generate one video [3, F, H, W] in [-1, 1], float32 on the CPU; argument names as upstream.

        img: the first frame, a PIL image or a path; last_image: the last one, beside `img` or without it. The size
        follows the aspect ratio of the image within `max_area` pixels, or within the area of `size`, (width, height),
        when that is given; the other fits of `wan.framing` save `size` exactly. frame_num: 4n+1; guide_scale: one
        number, or (low-noise, high-noise expert); n_prompt: what to avoid, the task's default when empty; seed:
        negative for a random one. Raises ValueError and FileNotFoundError for what cannot work, before any weight is
        read.
        """
        request = self.asked(
            input_prompt,
            image=img,
            last_image=last_image,
            size=size,
            max_area=max_area if size is None else None,
            fit=fit,
            frame_num=frame_num,
            shift=shift,
            solver=sample_solver,
            steps=sampling_steps,
            guidance=guide_scale,
            negative_prompt=n_prompt or None,  # None: the default of the task
            seed=seed,
        )
        return self.run(request, offload_model=offload_model, on_step=on_step)

    def condition(self, request: Request) -> Condition:
        """The mask and the latent of a clip that holds the given frames and is grey everywhere else."""
        places = (0, request.image), (request.frame_num - 1, request.last_image)
        frames = {index: given_frame(image, request) for index, image in places if image is not None}
        latent = self.vae.encode([condition_clip(frames, request.frame_num)])[0]
        mask = condition_mask(frames, request.frame_num, latent.shape[1:]).to(latent)
        return Condition(y=torch.cat([mask, latent]))


def given_frame(image: Picture, request: Request) -> Tensor:
    """The pixels [3, H, W] of a frame that is given; a last one is first cut to the shape of the first one."""
    pixels = image.pixels
    if request.fit in ("area", "pad"):
        pixels = crop_to_aspect(pixels, request.shape_image.size)
    if request.fit != "area":
        return from_uint8(torch.from_numpy(np.array(place(pixels, request.framing, request.fit))))
    width, height = request.framing.used
    return resize_picture(pixels, height, width)


def resize_first_frame(image: Tensor, height: int, width: int) -> Tensor:
    """[3, h, w] in [-1, 1] -> [3, height, width]: bicubic, neither antialiased nor clamped, as the model was trained.

    Values overshoot [-1, 1]. Large photos alias; the fits that save an exact size are antialiased.
    """
    return F.interpolate(image[None], size=(height, width), mode="bicubic", align_corners=False)[0]


def resize_picture(image: Image, height: int, width: int) -> Tensor:
    """`resize_first_frame` of an RGB image, equal to the last bit, without a float32 copy of it, which takes gigabytes.

    Of the rows that are read the columns become `width`, a band at a time; then the rows become `height`. That is the
    same sum, because the weights of an axis that keeps its length are 0, 1, 0 and 0.
    """
    read = rows_read(image.height, height)
    rows = torch.zeros(3, image.height, width)
    for top, band in bands(image):
        wanted = read[(read >= top) & (read < top + band.height)]
        if len(wanted):
            pixels = from_uint8(torch.from_numpy(np.asarray(band)[wanted - top]))
            rows[:, wanted] = resize_first_frame(pixels, len(wanted), width)
    return resize_first_frame(rows, height, width)


def rows_read(length: int, wanted: int) -> np.ndarray:
    """Rows of `length` that bicubic scaling to `wanted` rows reads: four for each, and one on either side in case."""
    center = np.floor((np.arange(wanted) + 0.5) * length / wanted - 0.5).astype(int)
    return np.unique((center[:, None] + np.arange(-2, 4)).clip(0, length - 1))


def condition_clip(frames: Mapping[int, Tensor], frame_num: int) -> Tensor:
    """VAE input [3, frame_num, H, W]: the given frames [3, H, W] at their indices, mid grey elsewhere."""
    some = next(iter(frames.values()))
    clip = some.new_zeros(some.shape[0], frame_num, *some.shape[1:])
    for index, frame in frames.items():
        clip[:, index] = frame
    return clip


def condition_mask(given: Iterable[int], frame_num: int, latent: Sequence[int]) -> Tensor:
    """Mask channels [4, T, h, w] for a latent of (T, h, w): 1 where a video frame is given.

    The four channels are the four frames that a latent frame covers; the first one covers a single frame four times.
    """
    frames = torch.zeros(frame_num)
    frames[list(given)] = 1
    channels = torch.cat([frames[:1].expand(3), frames]).view(-1, 4).T
    return channels[:, :, None, None].expand(-1, *latent)
