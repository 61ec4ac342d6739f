"""Runners for the golden vectors of the transformer, solvers, sampling loops and conditioning.

Tolerances are the maximum absolute differences in float32 that the recordings name.
"""

from dataclasses import replace
from itertools import chain, islice
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from tests.parity import assert_equal, assert_near, numbered, under
from tests.runs import sample, timesteps_of
from wan import framing, geometry, sampling
from wan.conditioning import condition_clip, condition_mask
from wan.configs import WAN_CONFIGS
from wan.distributed.replica import Replica
from wan.framing import cover, resize_first_frame
from wan.image2video import WanI2V
from wan.media import from_uint8, to_uint8
from wan.memory import Weights
from wan.modules.layers import sinusoidal_embedding_1d
from wan.modules.model import WanModel, WanModelConfig
from wan.modules.rope import grid_positions, rope_table, rotate
from wan.modules.steps import Prepared
from wan.pipeline import WanPipeline
from wan.request import Request
from wan.runtime import Offload, Runtime
from wan.text2video import WanT2V
from wan.textimage2video import WanTI2V
from wan.utils.prompt_extend import cloud_image_size, qwen_vl_size

Tensors = dict[str, Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# Transformer and its parts


def dit_forward(case: dict, tensors: Tensors) -> None:
    model = load_model(case, tensors)
    x, y, context = (numbered(tensors, f"in/{name}") for name in ("x", "y", "context"))
    expected, t = numbered(tensors, "out/x"), tensors["in/t"]

    def check(t: Tensor) -> None:
        for actual, wanted in zip(model(x, t, context, case["seq_len"], y or None), expected, strict=True):
            assert_near(actual, wanted, 1e-4)

    check(t)
    if t.ndim == 1:
        check(t[:, None].expand(-1, case["seq_len"]))
    elif (t == t[:, :1]).all():
        check(t[:, 0])


def table(case: dict, tensors: Tensors) -> None:
    positions = tensors["in/positions"][:, None].expand(-1, 3)
    rows = rope_table(positions, case["head_dim"], dtype=torch.float64)
    assert_near(rows[..., 0], tensors["out/cos"], 1e-12)
    assert_near(rows[..., 1], tensors["out/sin"], 1e-12)


def apply(case: dict, tensors: Tensors) -> None:
    for x, grid, expected in zip(tensors["in/x"], tensors["in/grid"].tolist(), tensors["out/x"], strict=True):
        rows = rope_table(grid_positions(grid), case["head_dim"])
        identity = torch.tensor([1.0, 0.0]).expand(len(x) - len(rows), case["head_dim"] // 2, 2)
        assert_near(rotate(x[None], torch.cat([rows, identity])[None])[0], expected, 1e-5)


def sinusoidal(case: dict, tensors: Tensors) -> None:
    features = sinusoidal_embedding_1d(case["dim"], tensors["in/positions"])
    assert_near(features, tensors["out/embedding"], 1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# Solvers


def schedule(case: dict, tensors: Tensors) -> None:
    for row in case["combinations"]:
        solver = sampling.make_solver(row["solver"], row["steps"], row["shift"])
        assert_equal(solver.timesteps, tensors[f"out/{row['key']}.timesteps"])
        assert_equal(solver.sigmas, tensors[f"out/{row['key']}.sigmas"])


def trajectory(case: dict, tensors: Tensors) -> None:
    a, b, c = (case["fake_model"][name] for name in "abc")
    solver = sampling.make_solver(case["solver"], case["steps"], case["shift"])
    assert_equal(solver.timesteps, tensors["out/timesteps"])
    assert_equal(solver.sigmas, tensors["out/sigmas"])
    velocities = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        velocities.append(a * x + b * (t / 1000) + c * torch.sin(x))
        return velocities[-1]

    x = tensors["in/x"]
    states = [x, *sampling.denoise(x, solver, velocity)]
    assert_near(torch.stack(states), tensors["out/x"], 1e-5)
    assert_near(torch.stack(velocities), tensors["out/v"], 1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Sampling loops: whole pipelines on recorded weights


def loop_t2v(case: dict, tensors: Tensors) -> None:
    check_pipeline(case, tensors, WanT2V, size=case["size_w_h"])


def loop_i2v(case: dict, tensors: Tensors) -> None:
    i2v_conditioning(case, tensors)
    steps = check_pipeline(case, tensors, WanI2V, image=to_image(tensors["in/image"]), max_area=case["max_area"])
    for call in chain.from_iterable(steps):  # every expert and both branches
        assert_equal(call.prepared.y[0], tensors["out/y"])


def loop_ti2v_t2v(case: dict, tensors: Tensors) -> None:
    check_token_timesteps(tensors, check_pipeline(case, tensors, WanTI2V, size=case["size_w_h"]))


def loop_ti2v_i2v(case: dict, tensors: Tensors) -> None:
    steps = check_pipeline(case, tensors, WanTI2V, image=to_image(tensors["in/image"]), max_area=case["max_area"])
    check_token_timesteps(tensors, steps)


def check_token_timesteps(tensors: Tensors, steps: list[list["Call"]]) -> None:
    """The timestep of every token, in both branches."""
    rows = zip(steps, tensors["out/token_timesteps"], strict=True)
    for call, expected in ((call, expected) for calls, expected in rows for call in calls):
        counts = torch.tensor([segment.stop - segment.start for segment in call.prepared.segments])
        rows = torch.cat([segment.rows for segment in call.prepared.segments])
        times = timesteps_of(call.features)[rows].repeat_interleave(counts)
        assert_equal(times.float(), expected[: len(times)])


class Call(NamedTuple):
    """Arguments of one call of a model, with one sample."""

    expert: str
    x: list[Tensor]
    features: Tensor
    prepared: Prepared


def check_pipeline(case: dict, tensors: Tensors, kind: type[WanPipeline], **values: Any) -> list[list[Call]]:
    """Sample the recorded request, compare every state, and return the calls of the models in each step."""
    calls: list[Call] = []
    pipeline = recorded_pipeline(case, tensors, kind, calls)
    low_high = case["guide_scale_low_high"] if "guide_scale_low_high" in case else [case["guide_scale"]] * 2
    names = ("frame_num", "shift", "solver", "steps", "seed", "boundary")
    values |= {name: case[name] for name in names if name in case}
    request = Request.create(pipeline.config, prompt="recorded", guidance=tuple(low_high), **values)
    with torch.no_grad():
        clip = pipeline.clip(request, 0, None)
    states = [clip.keep(pipeline.noise(request, clip))]
    sample(pipeline, request, lambda done, total, latent: states.append(latent))

    check_noise(case, tensors, tuple(states[0].shape))
    assert_near(torch.stack(states), tensors["out/x"], 1e-4)
    steps, given = [], iter(calls)
    for first in given:
        has_guidance = low_high["high" in first.expert] != 1
        steps.append([first, *islice(given, int(has_guidance))])
        for call, name in zip(steps[-1], ["in/context", "in/context_null"][: 1 + has_guidance], strict=True):
            assert_equal(call.prepared.context, pipeline.weights.get(call.expert).embed_text([tensors[name]]))
    assert len(steps) == case["steps"]
    if "out/timesteps" in tensors:
        assert [int(timesteps_of(call.features)[0]) for call, *_ in steps] == tensors["out/timesteps"].tolist()
        assert [int("high" in call.expert) for call, *_ in steps] == tensors["out/expert"].tolist()
    return steps


def recorded_pipeline(case: dict, tensors: Tensors, kind: type[WanPipeline], calls: list[Call]) -> WanPipeline:
    """Make a pipeline without a folder; its text encoder and VAE return the recorded tensors."""
    config = replace(WAN_CONFIGS[kind.task], vae_stride=tuple(case["vae_stride"]))
    pipeline = object.__new__(kind)
    pipeline.config, pipeline.phases = config, {}
    pipeline.runtime = Runtime.from_flags(device="cpu", dtype="fp32")
    pipeline.replica = Replica(pipeline.runtime.parallel, pipeline.runtime.device)
    pipeline.weights = Weights(pipeline.runtime.device, Offload.NONE)
    for expert in config.experts:
        prefix = "weights/" if expert == "." else f"weights/{expert.partition('_')[0]}."
        model = load_model(case, tensors, prefix)
        model.register_forward_pre_hook(lambda _, args, expert=expert: calls.append(Call(expert, *args)))
        pipeline.weights.add(expert, lambda model=model: model)

    def encode(videos: list[Tensor]) -> list[Tensor]:
        assert list(videos[0].shape) == case["vae_input_shape"]
        expected = tensors["out/vae_input"] if "out/vae_input" in tensors else tensors["out/vae_first_frame"][:, None]
        assert_near(videos[0][:, :1], expected, 1e-5)
        assert not videos[0][:, 1:].any()
        return [tensors["in/vae_latent"]]

    pipeline._vae = SimpleNamespace(encode=encode)
    pipeline.encode_prompts = lambda request: (tensors["in/context"], tensors["in/context_null"])
    return pipeline


def to_image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.numpy())


def check_noise(case: dict, tensors: Tensors, shape: tuple[int, ...]) -> None:
    """Check that the recorded noise is the first draw of the seed, in the shape of the request."""
    generator = torch.Generator().manual_seed(case["seed"])
    assert_equal(torch.randn(tuple(shape), generator=generator), tensors["in/noise"])
    patch = case["config"]["patch_size"] if "config" in case else geometry.PATCH_SIZE
    assert padded(geometry.token_count(tuple(shape), patch), case["sp_size"]) == case["seq_len"]


def padded(tokens: int, sp_size: int) -> int:
    return -(-tokens // sp_size) * sp_size


# ---------------------------------------------------------------------------------------------------------------------
# Conditioning on an image


def i2v_conditioning(case: dict, tensors: Tensors) -> None:
    image, latent, stride = tensors["in/image"], tensors["in/vae_latent"], case["vae_stride"]
    height, width = image.shape[:2]
    used = framing.of_area("i2v", case["max_area"], (width, height), stride, geometry.PATCH_SIZE)
    frame = resize_first_frame(from_uint8(image), used[1], used[0])
    assert_near(frame, tensors["out/vae_first_frame"], 1e-5)

    clip = condition_clip({0: frame}, case["frame_num"])
    assert list(clip.shape) == case["vae_input_shape"]
    assert_equal(clip[:, 0], frame)
    assert not clip[:, 1:].any()

    mask = condition_mask([0], case["frame_num"], latent.shape[1:])
    assert_equal(torch.cat([mask, latent]), tensors["out/y"])
    if "out/mask" in tensors:
        assert_equal(mask, tensors["out/mask"])
    assert padded(geometry.token_count(latent.shape), case.get("sp_size", 1)) == case["seq_len"]


def ti2v_conditioning(case: dict, tensors: Tensors) -> None:
    check_ti2v_image(case, tensors)
    noise = tensors["in/noise"]
    check_noise(case, tensors, noise.shape)
    mask = geometry.first_frame_mask(noise.shape)
    assert_equal(sampling.keep_first_frame(tensors["in/vae_latent"], mask)(noise), tensors["out/initial_latent"])
    solver = sampling.make_solver(case["solver"], case["steps"], case["shift"])
    tokens = mask[0, :, ::2, ::2].flatten()
    rows = torch.stack([torch.cat([tokens * t, t.expand(case["seq_len"] - len(tokens))]) for t in solver.timesteps])
    assert_equal(rows, tensors["out/token_timesteps"])


def check_ti2v_image(case: dict, tensors: Tensors) -> None:
    image = to_image(tensors["in/image"])
    image = cover(image, framing.of_area("ti2v", case["max_area"], image.size, case["vae_stride"], geometry.PATCH_SIZE))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
    assert_near(from_uint8(pixels)[:, None], tensors["out/vae_input"], 1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Sizes, masks and pixels


def i2v_latent_size(case: dict, tensors: Tensors) -> None:
    _, stride_h, stride_w = case["vae_stride"]
    rows = zip(tensors["in/w_h_area"].tolist(), tensors["out/lat_h_lat_w_h_w"].tolist(), strict=True)
    for (*image, area), expected in rows:
        high, wide = geometry.i2v_latent_size(*image, area, case["vae_stride"], case["patch_size"])
        assert [high, wide, high * stride_h, wide * stride_w] == expected


def best_output_size(case: dict, tensors: Tensors) -> None:
    for arguments, expected in zip(tensors["in/w_h_dw_dh_area"].tolist(), tensors["out/w_h"].tolist(), strict=True):
        assert list(geometry.best_output_size(*arguments)) == expected


def first_frame_mask(case: dict, tensors: Tensors) -> None:
    for shape, expected in zip(numbered(tensors, "in/shape"), numbered(tensors, "out/mask"), strict=True):
        assert_equal(geometry.first_frame_mask(tuple(shape.tolist())), expected)
        assert geometry.first_frame_mask(tuple(shape.tolist()), zero=False).all()


def video_frames(case: dict, tensors: Tensors) -> None:
    assert_equal(to_uint8(tensors["in/video"]), tensors["out/frames"])


def prompt_image_size(case: dict, tensors: Tensors) -> None:
    for size, expected in zip(tensors["in/w_h"].tolist(), tensors["out/cloud_w_h"].tolist(), strict=True):
        assert list(cloud_image_size(*size, case["cloud"]["max_pixels"])) == expected
    rows = zip(tensors["in/h_w_factor_min_max"].tolist(), tensors["out/local_h_w"].tolist(), strict=True)
    for arguments, expected in rows:
        assert list(qwen_vl_size(*arguments)) == expected


def load_model(case: dict, tensors: Tensors, prefix: str = "weights/") -> WanModel:
    model = WanModel(WanModelConfig.from_dict(case["config"]))
    model.load_state_dict(under(tensors, prefix), strict=True)
    return model.requires_grad_(False).eval()


RUNNERS = {
    "dit_forward": dit_forward,
    "rope_table": table,
    "rope_apply": apply,
    "sinusoidal_embedding": sinusoidal,
    "schedule_table": schedule,
    "solver_trajectory": trajectory,
    "sampling_loop_t2v": loop_t2v,
    "sampling_loop_i2v": loop_i2v,
    "sampling_loop_ti2v_t2v": loop_ti2v_t2v,
    "sampling_loop_ti2v_i2v": loop_ti2v_i2v,
    "i2v_conditioning": i2v_conditioning,
    "ti2v_conditioning": ti2v_conditioning,
    "i2v_latent_size": i2v_latent_size,
    "best_output_size": best_output_size,
    "first_frame_mask": first_frame_mask,
    "video_frames": video_frames,
    "prompt_image_size": prompt_image_size,
}
