"""Masks of a person in a video, by SAM 2, from clicks in key frames: chunk by chunk, with bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from wan.geometry import Size
from wan.modules.animate.preprocess.masks import CHUNK as UPSTREAM_CHUNK, Clicks, key_frames
from wan.modules.animate.preprocess.sam2 import session_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green and blue
LARGEST_HOLE = 8  # pixels of the coarse mask; larger holes are part of the picture
FILLED = 0.1  # logit of a filled hole
CHUNK = 100  # frames that are segmented together
MEMORY = 32  # frames; the model looks back on at most 16


class Sam2:
    """Segmenter of the stage. Videos are segmented in chunks; `as_upstream` starts each of them anew.

    Otherwise chunks are shorter, and each begins with the last frame and mask of the one before. Memory does not grow
    with the video.
    """

    def __init__(self, model: nn.Module, as_upstream: bool = False):
        self.model, self.carries, self.length = model, not as_upstream, UPSTREAM_CHUNK if as_upstream else CHUNK

    def describe(self) -> str:
        return f"masks: SAM 2 ({next(self.model.parameters()).device})"

    def masks(self, frames: Iterator[np.ndarray], clicks: Callable[[int], Clicks]) -> Iterator[np.ndarray]:
        """Yield the mask of each frame, uint8 [H, W]; `clicks` gives places and labels for a frame by its number."""
        frames, start, last, mask = iter(frames), 0, [], None
        while chunk := list(islice(frames, self.length)):
            asked = {len(last) + number: clicks(start + number) for number in key_frames(len(chunk))}
            found = segment(self.model, [*last, *chunk], asked, mask if last else None)
            for mask in islice(found, len(last), None):
                yield mask
            start += len(chunk)
            last = chunk[-1:] if self.carries and mask.any() else []


@torch.inference_mode()
def segment(
    model: nn.Module, frames: Sequence[np.ndarray], clicks: Mapping[int, Clicks], before: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yield the masks, uint8 [H, W], of a chunk of frames, uint8 [H, W, 3], each of which is read when it is needed.

    clicks: those of key frames, by their numbers. `before`: the mask of the first frame where it is known, which then
    replaces its clicks. Without any of them masks are empty. Frames before the first key frame are tracked backwards.
    """
    height, width = frames[0].shape[:2]
    prompts: dict[int, Clicks | np.ndarray] = {n: given for n, given in clicks.items() if (given[1] == 1).any()}
    if before is not None and before.any():
        prompts[0] = before
    if not prompts:
        yield from (np.zeros((height, width), np.uint8) for _ in frames)
        return
    session = session_of(model, Prepared(frames, model), (width, height))
    person = session.obj_id_to_idx(1)
    for number, given in sorted(prompts.items(), key=lambda item: item[0]):
        if isinstance(given, tuple):
            session.add_point_inputs(person, number, points(given, (width, height), model.image_size))
        else:
            session.add_mask_inputs(person, number, mask_input(given, model.image_size))
        session.obj_with_new_inputs = [1]  # else the frame would be tracked instead of remembered
        model(session, frame_idx=number)
    first = min(prompts)
    earlier = [*tracked(model, session, first, reverse=True)] if first else []
    yield from reversed(earlier[1:])
    yield from tracked(model, session, first)


def tracked(model: nn.Module, session: Any, first: int, reverse: bool = False) -> Iterator[np.ndarray]:
    """Yield the masks from a key frame on, and forget what later frames do not need."""
    size, (outputs,) = (session.video_width, session.video_height), session.output_dict_per_obj.values()
    for found in model.propagate_in_video_iterator(session, start_frame_idx=first, reverse=reverse):
        yield at_size(found.pred_masks, size)
        for known in outputs.values():
            known.get(found.frame_idx, {}).pop("high_res_masks", None)
        outputs["non_cond_frame_outputs"].pop(found.frame_idx + (MEMORY if reverse else -MEMORY), None)


class Prepared:
    """Frames in the form of the model's input, made on each use: those of a whole chunk would need gigabytes."""

    def __init__(self, frames: Sequence[np.ndarray], model: nn.Module):
        self.frames, self.side, self.dtype = frames, model.image_size, next(model.parameters()).dtype

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: int) -> Tensor:
        return prepared(self.frames[number], self.side).to(self.dtype)


def prepared(frame: np.ndarray, side: int) -> Tensor:
    """uint8 [H, W, 3] -> float32 [3, side, side], normalised; bicubic as Pillow's, the shape is not kept."""
    from PIL import Image

    resized = np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(resized.astype(np.float32) / 255).movedim(-1, 0)
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def points(clicks: Clicks, size: Size, side: int) -> dict[str, Tensor]:
    """Give clicks the form of the model: places [1, 1, n, 2] in pixels of its input."""
    places, labels = clicks
    scaled = places.astype(np.float32) / np.array(size, np.float32) * side
    return {
        "point_coords": torch.from_numpy(scaled)[None, None],
        "point_labels": torch.from_numpy(labels.astype(np.int32))[None, None],
    }


def mask_input(mask: np.ndarray, side: int) -> Tensor:
    """uint8 [H, W] -> float32 [1, 1, side, side], 0 or 1."""
    given = torch.from_numpy(mask)[None, None].float()
    return (interpolate(given, (side, side), mode="bilinear", antialias=True) >= 0.5).float()


def at_size(logits: Tensor, size: Size) -> np.ndarray:
    """Coarse logits [1, 1, h, w] -> a mask uint8 [H, W]: small holes are filled, then it is resized and decided."""
    logits = fill_holes(logits.float())
    fine = interpolate(logits, size[::-1], mode="bilinear", align_corners=False)
    return (fine[0, 0] > 0).to(torch.uint8).cpu().numpy()


def fill_holes(logits: Tensor) -> Tensor:
    """Fill holes [1, 1, h, w] of at most `LARGEST_HOLE` pixels, which also touch by corners."""
    outside = logits <= 0
    numbers = torch.arange(1, logits.numel() + 1, device=logits.device, dtype=torch.float32).view_as(logits)
    label = numbers * outside
    for _ in range(LARGEST_HOLE):  # the largest number spreads over a whole small hole
        label = max_pool2d(label, 3, 1, 1) * outside
    least = -max_pool2d(-label.where(outside, torch.inf), 3, 1, 1)
    whole = (max_pool2d(label, 3, 1, 1) == label) & (least == label) & outside
    ids = label.long().flatten()
    count = torch.bincount(ids, minlength=logits.numel() + 1)
    complete = torch.bincount(ids, weights=whole.flatten().double(), minlength=logits.numel() + 1)
    small = (count <= LARGEST_HOLE) & (complete == count)
    return logits.masked_fill(small[ids].view_as(outside) & outside, FILLED)
