"""Runner for the golden runs of character animation: all clips of a video, with stand-in networks."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from tests.parity import assert_equal, assert_near
from tests.runs import timesteps_of
from wan.animate import WanAnimate, clips_of
from wan.clips import FramesDecoded
from wan.configs import WAN_CONFIGS
from wan.distributed.replica import Replica
from wan.framing import plain
from wan.memory import Weights
from wan.modules.animate.model import BlankFace
from wan.performance import Footage, Performance
from wan.request import Request
from wan.runtime import Offload, Runtime

CELL = 8  # pixels of a side


class StillFrames:
    """Frames in memory."""

    def __init__(self, frames: np.ndarray):
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def take(self, numbers):
        return self.frames[numbers]


class Vae:
    """Means of cells and of frames."""

    def encode(self, videos: list[Tensor]) -> list[Tensor]:
        return [self.latent(video) for video in videos]

    def latent(self, video: Tensor) -> Tensor:
        cells, starts = avg_pool2d(video, CELL), [0, *range(1, video.shape[1], 4)]
        means = torch.stack([cells[:, start : start + (4 if start else 1)].mean(dim=1) for start in starts], dim=1)
        return torch.stack([means[k % 3] * (k + 1) / 16 for k in range(16)])

    def decode_stream(self, latent: Tensor):
        colours = torch.stack([0.5 * latent[c::3].mean(dim=0) for c in range(3)])
        frames = torch.cat([colours[:, :1], colours[:, 1:].repeat_interleave(4, dim=1)], dim=1).clamp(-1, 1)
        yield frames.repeat_interleave(CELL, dim=2).repeat_interleave(CELL, dim=3)


class Velocity(nn.Module):
    """Weighted sum of all inputs; it notes those of each clip and branch."""

    config = SimpleNamespace(freq_dim=256)

    def __init__(self):
        super().__init__()
        self.prepared, self.timesteps = [], []

    def prepare(self, context, sizes, segments, y, *, clip_fea, pose_latents, face_pixel_values):
        faces = face_pixel_values
        means = torch.full((1,), -1.0) if isinstance(faces, BlankFace) else faces[0].mean(dim=(0, 2, 3))
        found = SimpleNamespace(y=y[0], pose=pose_latents[0], faces=means, context=context[0], image=clip_fea)
        self.prepared.append(found)
        return found

    def forward(self, x, features, given):
        self.timesteps.append(int(timesteps_of(features)[0]))
        [x] = x
        pose = pad(given.pose, (0, 0, 0, 0, 1, 0))
        constant = 0.02 * given.faces.mean() + 0.01 * given.context.mean()
        return [0.25 * x - 0.10 * given.y[4:20] + 0.05 * pose + 0.03 * given.y[:4].mean(dim=0) + constant]


def pipeline(case: dict, tensors: dict[str, Tensor]) -> None:
    given = {name.removeprefix("in/"): tensor.numpy() for name, tensor in tensors.items() if name.startswith("in/")}
    masks = StillFrames(given["mask"][..., None].repeat(3, axis=-1)) if "mask" in given else None
    background = StillFrames(given["bg"]) if "bg" in given else None
    footage = Footage(StillFrames(given["pose"]), StillFrames(given["face"]), given["ref"], background, masks)
    config, images = WAN_CONFIGS["animate-14B"], []
    request = Request(
        task="animate-14B",
        prompt="POS",
        negative_prompt="NEG",
        framing=plain((case["width"], case["height"]), config.vae_stride, config.patch_size),
        frame_num=case["clip_len"],
        steps=case["steps"],
        shift=case["shift"],
        guidance=(case["guide_scale"],) * 2,
        solver=case["solver"],
        seed=case["seed"],
        fps=config.sample_fps,
        performance=Performance.of(footage),
        refert_num=case["refert_num"],
        replace_flag=case["replace"],
        as_upstream=True,
    )
    model, made = Velocity(), recorded_pipeline(images, given["face"].shape[1])
    made.weights.add(".", lambda: model)
    noises, draw = [], made.noise
    made.noise = lambda *call: noises.append(draw(*call)) or noises[-1]
    frames = [event.frames for event in made.run(request) if isinstance(event, FramesDecoded)]

    clips = clips_of(request)
    assert (len(clips), clips[-1].stop) == (case["num_clips"], case["target_len"])
    assert_near(torch.cat(frames, dim=1)[..., ::CELL, ::CELL], tensors["out/video_f32"], 1e-5)
    assert_near(torch.stack(images), tensors["out/clip_image"][None], 1e-6)
    assert_equal(torch.stack(noises), tensors["out/noise"])
    branches = 2 if case["guide_scale"] > 1 else 1
    prepared = model.prepared[::branches]
    assert_near(torch.stack([clip.y for clip in prepared]), tensors["out/y_f32"], 1e-5)
    assert_near(torch.stack([clip.pose for clip in prepared]), tensors["out/pose_latents_f32"], 1e-5)
    assert_near(torch.stack([clip.faces for clip in prepared]), tensors["out/face_clip_mean_per_frame"], 1e-5)
    assert model.timesteps[::branches] == tensors["out/timesteps"].tolist() * len(clips)
    if branches == 2:
        assert [clip.faces.tolist() for clip in model.prepared[1::2]] == [[case["uncond_face_value"]]] * len(clips)


def recorded_pipeline(images: list[Tensor], face_size: int) -> WanAnimate:
    """Make a pipeline without a folder; pictures that CLIP gets are added to `images`."""
    made = object.__new__(StandIn)
    made.config, made.phases, made.face_pixels = WAN_CONFIGS["animate-14B"], {}, face_size
    made.runtime = Runtime.from_flags(device="cpu", dtype="fp32")
    made.replica = Replica(made.runtime.parallel, made.runtime.device)
    made.weights = Weights(made.runtime.device, Offload.NONE)
    clip = SimpleNamespace(encode=lambda image: images.append(image) or torch.ones(1, 257, 4))
    made.weights.add("clip", lambda: clip)
    made._vae = Vae()
    made.encode_prompts = lambda request: (torch.full((1, 1), 0.5), torch.full((1, 1), -0.5))
    return made


class StandIn(WanAnimate):
    face_size = property(lambda self: self.face_pixels)
    clip_vision = property(lambda self: self.weights.get("clip"))


RUNNERS = {"pipeline": pipeline}
