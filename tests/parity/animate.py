"""Runners for the golden cases of character animation: the transformer, its parts and what a clip is made from."""

import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.parity import assert_equal, assert_near, under
from wan.checkpoint.lora import Lora
from wan.clips import back_and_forth, overlapping
from wan.conditioning import condition_mask
from wan.experts import adapt
from wan.letterbox import letterbox
from wan.modules.animate import WanAnimateModel
from wan.modules.animate.clip import ClipConfig, ClipVision, VisualSource, preprocess
from wan.modules.animate.config import AnimateModelConfig
from wan.modules.animate.face import FaceBlock, FaceEncoder
from wan.modules.animate.motion_encoder import FaceMotionEncoder

Tensors = dict[str, Tensor]


@torch.no_grad()
def dit_forward(case: dict, tensors: Tensors) -> None:
    weights = under(tensors, "weights/")
    for model in models(case, weights, under(tensors, "lora/")):
        check_dit(case, tensors, model)


def models(case: dict, weights: Tensors, adapters: Tensors) -> Iterator[WanAnimateModel]:
    """Make the recorded model; with its LoRA twice, merged and beside the weights."""
    model = WanAnimateModel(AnimateModelConfig.from_dict(case["config"]))
    model.load_state_dict(weights, strict=True)
    if not case["lora"]:
        yield model
        return
    scale = case["lora"]["alpha"] / case["lora"]["rank"]  # the released file has no alpha, which then is the rank
    adapters = {name: tensor * scale if ".lora_B." in name else tensor for name, tensor in adapters.items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(adapters, f"{folder}/adapter.safetensors")
        lora = Lora(f"{folder}/adapter.safetensors", {name: tuple(tensor.shape) for name, tensor in weights.items()})
        assert str(lora) == f"{len(adapters) // 2} of {len(adapters) // 2} layers"
        yield adapt(model, lora)
        merged = WanAnimateModel(model.config)
        merged.load_state_dict({name: lora.merge(name, tensor) for name, tensor in weights.items()})
        yield merged


def check_dit(case: dict, tensors: Tensors, model: WanAnimateModel) -> None:
    seen: dict[str, Tensor] = {}
    keep = lambda name, of=lambda out: out: lambda *call: seen.__setitem__(name, of(call[-1]))  # noqa: E731
    model.motion_encoder.register_forward_hook(keep("motion", lambda out: out.unflatten(0, (case["batch"], -1))))
    model.face_encoder.register_forward_hook(keep("face_tokens"))
    model.img_emb.register_forward_hook(keep("img_emb"))
    model.time_projection.register_forward_hook(keep("time_proj", lambda out: out.unflatten(1, (6, -1))))
    model.blocks[0].register_forward_pre_hook(keep("tokens_in", lambda args: args[0].x))
    model.blocks[0].register_forward_hook(keep("block0", lambda out: out.x))
    model.face_adapter.fuser_blocks[0].register_forward_hook(keep("adapter0_residual", lambda out: out.flatten(1, 2)))

    given = under(tensors, "in/")
    context = [given[f"context_{i}"] for i in range(case["batch"])]
    inputs = {name: given[name] for name in ("pose_latents", "face_pixel_values")}
    call = [*given["x"]], given["t"], given["clip_fea"], context, case["seq_len"], [*given["y"]]
    seen["sample"] = torch.stack(model(*call, **inputs))
    for name, expected in under(tensors, "out/").items():
        assert_near(seen[name], expected, 5e-5)


@torch.no_grad()
def motion_encoder(case: dict, tensors: Tensors) -> None:
    config = AnimateModelConfig(
        motion_encoder_size=case["size"],
        motion_encoder_channels=case["channels"],
        motion_style_dim=case["style_dim"],
        motion_dim=case["motion_dim"],
        motion_encoder_dim=case["out_dim"],
    )
    encoder, x = FaceMotionEncoder(config), tensors["in/face"]
    encoder.load_state_dict(under(tensors, "weights/"))
    seen = stages(encoder, x)
    block = encoder.enc["net_app"]["convs"][1]
    seen["conv1_conv2_blur"] = block.conv2[0](block.conv1(seen["conv0"]))
    seen["conv1_skip_blur"] = block.skip[0](seen["conv0"])
    expected = under(tensors, "out/")
    assert seen.keys() == expected.keys()
    for name, value in expected.items():
        assert_near(seen[name], value, 1e-5)


def stages(encoder: FaceMotionEncoder, x: Tensor) -> Tensors:
    """Return the outputs of all stages of a motion encoder under their names in the recordings."""
    seen = {}
    for number, layer in enumerate(encoder.enc["net_app"]["convs"]):
        layer.register_forward_hook(lambda *call, name=f"conv{number}": seen.__setitem__(name, call[-1]))
    encoder.enc["fc"].register_forward_hook(lambda *call: seen.__setitem__("motion_coeff", call[-1]))
    seen["motion"] = encoder(x)
    return seen | {"direction_Q": encoder.dec["direction"].basis()}


@torch.no_grad()
def motion_encoder_hashed(case: dict, tensors: Tensors) -> None:
    sizes = {"motion_encoder_size": case["size"], "motion_style_dim": case["style_dim"]}
    encoder = FaceMotionEncoder(AnimateModelConfig(**sizes, motion_dim=case["motion_dim"]))
    for name, parameter in encoder.named_parameters():
        scale = case["bias_scale"] if name.endswith("bias") else 3**0.5
        parameter.copy_(hashed(case["salt"] + name, parameter.shape, scale))
    t, c, y, x = torch.meshgrid(*map(torch.arange, (case["frames"], 3, case["size"], case["size"])), indexing="ij")
    faces = ((x * (3 + c) + y * 5 + c * 41 + t * 67 + (x * y) // 64) % 256) / 127.5 - 1
    seen = stages(encoder, faces)
    for name in ("direction_Q", "motion", "motion_coeff"):
        assert_near(seen[name], tensors[f"out/{name}"], 2e-5)
    assert_near(seen["conv1"][:, ::8, 100:104, 200:204], tensors["out/stage1_crop"], 2e-5)
    found = [seen[f"conv{number + 1}"] for number in range(len(tensors["out/stage_mean_std"]))]
    assert_near(torch.stack([torch.stack([f.mean(), f.std()]) for f in found]), tensors["out/stage_mean_std"], 2e-5)


@torch.no_grad()
def face_encoder(case: dict, tensors: Tensors) -> None:
    encoder = make_face_encoder(case)
    encoder.load_state_dict(under(tensors, "weights/"))
    assert_near(encoder(tensors["in/motion"]), tensors["out/tokens"], 1e-5)


@torch.no_grad()
def face_encoder_hashed(case: dict, tensors: Tensors) -> None:
    encoder, salt = make_face_encoder(case), case["salt"]
    for name, parameter in encoder.named_parameters():
        scale = 0.5 if name == "padding_tokens" else 0.1 if name.endswith("bias") else (3 / parameter[0].numel()) ** 0.5
        parameter.copy_(hashed(salt + name, parameter.shape, scale))
    tokens = encoder(hashed(f"{salt}motion", (1, case["frames"], case["in_dim"]), 2.0))
    assert_near(tokens[..., ::40], tensors["out/tokens_stride40"], 2e-5)
    assert_near(tokens.mean(dim=-1), tensors["out/tokens_mean"], 2e-5)


def make_face_encoder(case: dict) -> FaceEncoder:
    """Make a face encoder; `hidden_dim` of the recordings is the width of the transformer, `width` that inside."""
    sizes = {"motion_encoder_dim": case["in_dim"], "dim": case["hidden_dim"], "motion_dim": 1}
    inside = {"face_encoder_hidden_dim": case["width"], "face_encoder_num_heads": case["num_heads"]}
    return FaceEncoder(AnimateModelConfig(**sizes, **inside, num_heads=1))


def conditioning_mask(case: dict, tensors: Tensors) -> None:
    for item in case["items"]:
        latent = item["lat_t"], item["lat_h"], item["lat_w"]
        count = 4 * (latent[0] - 1) + 1
        keep = (
            tensors[f"in/keep_{item['index']}"][0].clone() if item["has_keep_mask"] else torch.zeros(count, *latent[1:])
        )
        keep[: item["mask_len"]] = 1
        assert_equal(condition_mask(keep, count, latent), tensors[f"out/mask_{item['index']}"])


def clip_schedule(case: dict, tensors: Tensors) -> None:
    for row in case["rows"]:
        clips = overlapping(row["real_len"], row["clip_len"], row["refert_num"], is_full=True)
        if row["fails_no_clip"]:  # upstream fails, and ours makes one clip
            assert clips == [range(row["clip_len"])]
            continue
        assert [[clip.start, clip.stop] for clip in clips] == row["clips"] and clips[-1].stop == row["target_len"]
        kept = [len(clip) - (row["refert_num"] if number else 0) for number, clip in enumerate(clips)]
        assert kept == row["frames_kept"]
    for row in case["padding"]:  # upstream cannot extend one frame, and ours repeats it
        assert back_and_forth(row["length"], row["target"]) == (row["indices"] or [0] * row["target"])


def check_letterbox(case: dict, tensors: Tensors) -> None:
    for item in case["items"]:
        placed = letterbox(tensors[f"in/image_{item['index']}"].numpy(), item["height"], item["width"])
        assert_equal(torch.from_numpy(placed), tensors[f"out/image_{item['index']}"])


@torch.no_grad()
def clip_visual(case: dict, tensors: Tensors) -> None:
    pytest.importorskip("transformers")
    shapes = {name: tuple(tensor.shape) for name, tensor in under(tensors, "weights/").items()}
    config = ClipConfig.from_state(shapes, case["vision_heads"])
    assert (config.image_size, config.patch_size, config.dim) == tuple(
        case[name] for name in ("image_size", "patch_size", "vision_dim")
    )
    for layers, name in ((config.num_layers, "penultimate"), (case["vision_layers"], "all_blocks")):
        tower = ClipVision(replace(config, num_layers=layers))
        tower.load_state_dict(VisualState(under(tensors, "weights/"), layers).state())
        assert_near(tower(tensors["in/pixel_values"]), tensors[f"out/{name}"], 1e-5)


class VisualState(VisualSource):
    """Tensors of a recording, as a source reads them from a file."""

    def __init__(self, state: Tensors, num_layers: int):
        names, shape = lambda: list(state), lambda name: tuple(state[name].shape)
        super().__init__(SimpleNamespace(description="", names=names, shape=shape, get=state.get), num_layers)

    def state(self) -> Tensors:
        return {name: self.get(name) for name in self.names()}


def clip_preprocess(case: dict, tensors: Tensors) -> None:
    image, step = tensors["in/image_u8"] / 127.5 - 1, case["row_col_stride_of_outputs"]
    for kind, expected in under(tensors, "out/pixel_values_").items():
        given = image.bfloat16() if kind == "bf16" else image
        found = preprocess(given, case["image_size"])[..., ::step, ::step]
        assert_near(found.float(), expected.float(), 0.05 if kind == "bf16" else 1e-5)


@torch.no_grad()
def face_adapter_block(case: dict, tensors: Tensors) -> None:
    block = FaceBlock(AnimateModelConfig(dim=case["hidden_size"], num_heads=case["heads_num"]))
    block.load_state_dict(under(tensors, "weights/"))
    x = tensors["in/x"].unflatten(1, (case["frames"], case["tokens_per_frame"]))
    found = block(x, *block.keys_values(tensors["in/motion_tokens"]))
    assert_near(found.flatten(1, 2), tensors["out/residual"], 1e-5)


def hashed(name: str, shape: tuple[int, ...], scale: float) -> Tensor:
    """Make a tensor from its name, as the recordings of real sizes do: a hash of each index."""
    bits = (1 << 32) - 1
    a = (torch.arange(torch.Size(shape).numel()) * 2654435761 + zlib.crc32(name.encode())) & bits
    for shift, factor in ((16, 2246822519), (13, 3266489917)):
        a ^= a >> shift
        a = ((a & 0xFFFF) * factor + (((a >> 16) * factor & 0xFFFF) << 16)) & bits  # no product leaves 63 bits
    a ^= a >> 16
    return (scale * (2 * a.double() / 2**32 - 1)).float().view(shape)


RUNNERS = {
    "animate_dit_forward": dit_forward,
    "motion_encoder": motion_encoder,
    "motion_encoder_hashed": motion_encoder_hashed,
    "face_encoder": face_encoder,
    "face_encoder_hashed": face_encoder_hashed,
    "clip_visual": clip_visual,
    "clip_preprocess": clip_preprocess,
    "clip_schedule": clip_schedule,
    "conditioning_mask": conditioning_mask,
    "letterbox": check_letterbox,
    "face_adapter_block": face_adapter_block,
}
