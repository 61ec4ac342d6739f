"""Runners for the golden vectors of the transformer, solvers, sampling loops and conditioning.

Tolerances are the maximum absolute differences in float32 that the recordings come with.
"""

import torch
from PIL import Image
from torch import Tensor

from tests.parity import assert_equal, assert_near, numbered, under
from wan import framing, geometry, sampling
from wan.image2video import condition_clip, condition_mask, resize_first_frame
from wan.media import from_uint8, to_uint8
from wan.modules.layers import sinusoidal_embedding_1d
from wan.modules.model import WanModel, WanModelConfig
from wan.modules.rope import grid_positions, rope_table, rotate
from wan.textimage2video import cover
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
# Sampling loops


def loop_t2v(case: dict, tensors: Tensors) -> None:
    check_noise(case, tensors, geometry.latent_shape(case["size_w_h"], case["frame_num"], case["vae_stride"]))
    check_two_experts(case, tensors, y=None)


def loop_i2v(case: dict, tensors: Tensors) -> None:
    y = i2v_conditioning(case, tensors)
    check_noise(case, tensors, (16, *y.shape[1:]))
    check_two_experts(case, tensors, y)


def check_two_experts(case: dict, tensors: Tensors, y: Tensor | None) -> None:
    used, given = [], []
    # The recorded pair is ordered (low-noise expert, high-noise expert).
    scales = dict(zip(("low", "high"), case["guide_scale_low_high"], strict=True))

    def expert(name: str) -> sampling.Velocity:
        model = load_model(case, tensors, f"weights/{name}.")

        def forward(latent: Tensor, t: Tensor, context: Tensor) -> Tensor:
            return model([latent], t[None], [context], case["seq_len"], None if y is None else [y])[0]

        guided = sampling.guided(forward, tensors["in/context"], tensors["in/context_null"], scales[name])

        def noted(latent: Tensor, t: Tensor) -> Tensor:
            used.append(int(name == "high"))
            given.append(int(t))
            return guided(latent, t)

        return noted

    velocity = sampling.switch_at(case["boundary"] * 1000, high=expert("high"), low=expert("low"))
    solver = sampling.make_solver(case["solver"], case["steps"], case["shift"])
    noise = tensors["in/noise"]
    states = [noise, *sampling.denoise(noise, solver, velocity)]
    assert given == tensors["out/timesteps"].tolist()
    assert used == tensors["out/expert"].tolist()
    assert_near(torch.stack(states), tensors["out/x"], 1e-4)


def loop_ti2v_t2v(case: dict, tensors: Tensors) -> None:
    shape = geometry.latent_shape(case["size_w_h"], case["frame_num"], case["vae_stride"], z_dim=48)
    check_noise(case, tensors, shape)
    check_one_expert(case, tensors, geometry.first_frame_mask(shape, zero=False), sampling.identity)


def loop_ti2v_i2v(case: dict, tensors: Tensors) -> None:
    noise = tensors["in/noise"]
    check_ti2v_image(case, tensors)
    check_noise(case, tensors, noise.shape)
    mask = geometry.first_frame_mask(noise.shape)
    check_one_expert(case, tensors, mask, sampling.keep_first_frame(tensors["in/vae_latent"], mask))


def check_one_expert(case: dict, tensors: Tensors, mask: Tensor, keep: sampling.Keep) -> None:
    model = load_model(case, tensors)
    given = []

    def forward(latent: Tensor, t: Tensor, context: Tensor) -> Tensor:
        given.append(geometry.token_timesteps(mask, t, case["seq_len"]))
        return model([latent], given[-1], [context], case["seq_len"])[0]

    velocity = sampling.guided(forward, tensors["in/context"], tensors["in/context_null"], case["guide_scale"])
    solver = sampling.make_solver(case["solver"], case["steps"], case["shift"])
    start = keep(tensors["in/noise"])
    states = [start, *sampling.denoise(start, solver, velocity, keep)]
    for branch in (0, 1):  # both guidance branches are given the same timesteps
        assert_equal(torch.cat(given[branch::2]), tensors["out/token_timesteps"])
    assert_near(torch.stack(states), tensors["out/x"], 1e-4)


def check_noise(case: dict, tensors: Tensors, shape: tuple[int, ...]) -> None:
    """The recorded noise is the first draw of the seed, in the shape that the request implies."""
    generator = torch.Generator().manual_seed(case["seed"])
    assert_equal(torch.randn(tuple(shape), generator=generator), tensors["in/noise"])
    patch = case["config"]["patch_size"] if "config" in case else geometry.PATCH_SIZE
    assert geometry.padded_seq_len(tuple(shape), patch, case["sp_size"]) == case["seq_len"]


# ---------------------------------------------------------------------------------------------------------------------
# Conditioning on an image


def i2v_conditioning(case: dict, tensors: Tensors) -> Tensor:
    """Checks the image side of image to video; the condition y, for the loops."""
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
    y = torch.cat([mask, latent])
    assert_equal(y, tensors["out/y"])
    if "out/mask" in tensors:
        assert_equal(mask, tensors["out/mask"])
    assert geometry.padded_seq_len(latent.shape, sp_size=case.get("sp_size", 1)) == case["seq_len"]
    return y


def ti2v_conditioning(case: dict, tensors: Tensors) -> None:
    check_ti2v_image(case, tensors)
    noise = tensors["in/noise"]
    check_noise(case, tensors, noise.shape)
    mask = geometry.first_frame_mask(noise.shape)
    assert_equal(sampling.keep_first_frame(tensors["in/vae_latent"], mask)(noise), tensors["out/initial_latent"])
    solver = sampling.make_solver(case["solver"], case["steps"], case["shift"])
    rows = [geometry.token_timesteps(mask, t, case["seq_len"]) for t in solver.timesteps]
    assert_equal(torch.cat(rows), tensors["out/token_timesteps"])


def check_ti2v_image(case: dict, tensors: Tensors) -> None:
    image = Image.fromarray(tensors["in/image"].numpy())
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
