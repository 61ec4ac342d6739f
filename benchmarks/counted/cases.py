"""Cases that are counted: models of released sizes with pretended weights, from each phase of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks import animate, s2v
from benchmarks.counted.count import Counter
from benchmarks.counted.pretend import DEVICE, empty, place, pretended
from wan.checking import MODELS, VAES
from wan.configs import WAN_CONFIGS
from wan.geometry import LatentShape, latent_shape, parse_size, token_count
from wan.modules.attention import attention
from wan.modules.layers import FeedForward
from wan.modules.model import WanModel, WanSelfAttention, time_features
from wan.modules.steps import Prepared
from wan.modules.t5 import UMT5_XXL, T5Encoder
from wan.modules.vae_wrapper import VideoVAE

PROMPT = 100  # tokens
S2V_HISTORY = 19  # latent frames


@dataclass(frozen=True)
class Case:
    """One run of code. `goal` are the seconds that its compiled forward may take, the number that issue it had."""

    name: str
    phase: str
    run: Callable[[Counter], None]
    compiled: bool = False  # it has another form for a compiler
    goal: float | None = None

    def count(self, for_compiler: bool = False) -> Counter:
        """Count it, in the form that a compiler sees if that is asked for."""
        counter = Counter()
        with pretended(), mock.patch("torch.compiler.is_compiling", lambda: for_compiler):
            self.run(counter)
        return counter


def forward(
    task: str,
    size: str,
    counter: Counter,
    *,
    first_frame: bool = False,
    frame_num: int | None = None,
    layers: int | None = None,
) -> None:
    """Count one branch of guidance of one step, after `prepare` and the features of the timesteps."""
    config = WAN_CONFIGS[task]
    shape = clip_shape(task, size, frame_num)
    model = transformer(task, layers)
    if config.model_type == "s2v":
        prepared = s2v.prepare(model, shape[1:], S2V_HISTORY)[1]
    elif config.model_type == "animate":
        prepared = animate.prepare(model, shape[1:])[1]
    else:
        prepared = prepare(model, shape, first_frame)
    features = time_features(torch.tensor([500, 0]), model.config.freq_dim, DEVICE)
    latent = empty(*shape)
    with counter:
        counter.hold(model)
        model([latent], features, prepared)


def clip_shape(task: str, size: str, frame_num: int | None = None) -> LatentShape:
    """Shape of the latent of a clip, with all of its frames."""
    config = WAN_CONFIGS[task]
    frames = frame_num or config.frame_num
    frames += {"s2v": 1 - config.vae_stride[0], "animate": config.vae_stride[0]}.get(config.model_type, 0)
    return latent_shape(parse_size(size), frames, config.vae_stride, config.z_dim)


def transformer(task: str, layers: int | None = None) -> WanModel:
    """Make the transformer of a task as `wan.experts` does for a GPU: types of weights, kernels, fused GELU."""
    kind, sizes = MODELS[WAN_CONFIGS[task].model_type], WAN_CONFIGS[task].architecture()
    if layers:
        fewer = {"num_layers": layers, "audio_inject_layers": (0,)}
        sizes |= {name: value for name, value in fewer.items() if hasattr(kind.config_class, name)}
    model = place(
        lambda: kind(kind.config_class.from_dict(sizes)),
        lambda name: torch.float32 if kind.keeps_float32(name) else torch.bfloat16,
    )
    for module in model.modules():
        if isinstance(module, WanSelfAttention):
            module.attend = partial(attention, backend="sdpa")
        elif isinstance(module, FeedForward):
            module.has_fused_gelu = True
    return model


def prepare(model: WanModel, shape: LatentShape, first_frame: bool) -> Prepared:
    """Prepare a clip from text, or with a clean first frame, or with the channels of an image."""
    tokens = token_count(shape, model.config.patch_size)
    first = tokens // shape[1]
    y = model.config.in_dim - model.config.out_dim
    return model.prepare(
        [empty(PROMPT, model.config.text_dim, dtype=torch.bfloat16)],
        [shape[1:]],
        [(first, 1), (tokens - first, 0)] if first_frame else None,
        [empty(y, *shape[1:])] if y else None,
    )


def text(tokens: int, counter: Counter) -> None:
    """Count the encoding of one prompt."""
    encoder = place(lambda: T5Encoder(UMT5_XXL), lambda name: torch.bfloat16)
    ids = torch.empty(1, tokens, dtype=torch.int64, device=DEVICE)
    with counter:
        counter.hold(encoder)
        encoder(ids)


def decode(
    task: str,
    size: str,
    tile: int | None,
    counter: Counter,
    *,
    frame_num: int | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> None:
    """Count the decoding of a clip to frames on the host; `sizes` are those of a smaller autoencoder."""
    vae = autoencoder(task, tile, sizes)
    latent = empty(*clip_shape(task, size, frame_num))
    with counter:
        counter.hold(vae.model)
        for chunk in vae.decode_stream(latent):
            chunk.float().cpu()
            del chunk


def encode(task: str, size: str, frames: int, tile: int | None, counter: Counter) -> None:
    """Count the encoding of so many frames."""
    vae = autoencoder(task, tile)
    width, height = parse_size(size)
    video = empty(3, frames, height, width)
    with counter:
        counter.hold(vae.model)
        vae.encode([video])


def autoencoder(task: str, tile: int | None, sizes: Mapping[str, Any] | None = None) -> VideoVAE:
    """Make the autoencoder of a task."""
    kind = VAES[WAN_CONFIGS[task].z_dim]
    build = partial(kind.network, kind.network.config_class(**sizes or {}))
    return kind(model=place(build, lambda name: torch.float32), device=DEVICE, tiling=tile)


def cases() -> list[Case]:
    """List all cases, in the order of the table."""
    a14b, hd, hybrid = "832*480", "1280*720", "1280*704"
    forwards = [
        ("t2v-A14B 480p", partial(forward, "t2v-A14B", a14b), 2.40),
        ("t2v-A14B 720p", partial(forward, "t2v-A14B", hd), 9.30),
        ("i2v-A14B 480p", partial(forward, "i2v-A14B", a14b), None),
        ("i2v-A14B 720p", partial(forward, "i2v-A14B", hd), None),
        ("ti2v-5B text", partial(forward, "ti2v-5B", hybrid), 0.75),
        ("ti2v-5B image", partial(forward, "ti2v-5B", hybrid, first_frame=True), None),
        ("s2v-14B 1024x704", partial(forward, "s2v-14B", "1024*704"), None),
        ("animate-14B 720p", partial(forward, "animate-14B", hd), None),
    ]
    found = [Case(name, "forward", run, True, goal) for name, run, goal in forwards]
    found.append(Case("umT5-XXL, 512 tokens", "encode", partial(text, 512)))
    for name, task, size, frames, tiles in (
        ("VAE 2.1 480p", "t2v-A14B", a14b, 81, (None, 256)),
        ("VAE 2.1 720p", "t2v-A14B", hd, 81, (None, 512, 256)),
        ("VAE 2.2 720p", "ti2v-5B", hybrid, 1, (None, 512, 256)),
    ):
        for tile in tiles:
            how = f"tiles of {tile}" if tile else "whole"
            found.append(Case(f"{name}, decoded {how}", "decode", partial(decode, task, size, tile)))
        for tile in tiles[:2]:
            how = f"tiles of {tile}" if tile else "whole"
            label = f"{name}, {frames} frame{'s' * (frames > 1)} encoded {how}"
            found.append(Case(label, "encode", partial(encode, task, size, frames, tile)))
    return found
