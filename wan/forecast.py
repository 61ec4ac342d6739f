"""Forecast of the memory that a run will take, from file headers and shapes, before any weight is read."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from wan import geometry, memory
from wan.checking import MODELS, VAES, expert_config
from wan.checkpoint.formats import released_names
from wan.checkpoint.layout import part, stored_bytes
from wan.checkpoint.loading import empty
from wan.checkpoint.repacked import freshest, open_copy
from wan.checkpoint.source import open_source
from wan.configs import TaskConfig
from wan.experts import quantise
from wan.geometry import LatentShape, Size
from wan.images import kept_bytes
from wan.modules.animate.clip import open_clip
from wan.modules.block_cache import SAMPLED
from wan.modules.model import WanModel, WanModelConfig
from wan.modules.quantised import QuantisedLinear
from wan.modules.t5 import UMT5_XXL, T5Config, T5Encoder
from wan.modules.vae import LATENTS_AT_ONCE, PIXEL_CHANNELS, VAEConfig, tiles
from wan.modules.vae_blocks import FRAMES_AT_ONCE, HISTORY
from wan.modules.vae_inference import MIN_CHANNELS
from wan.modules.vae_wrapper import open_vae
from wan.request import Request, picture_bytes
from wan.runtime import Offload, Runtime
from wan.streaming import Unit, num_bound, num_slots, streamed_weights

REORDERED = 1.5  # whole frames on a CPU: convolutions of few channels copy them, and the heap keeps gaps
RESERVE = 3 << 29  # bytes on a device for its driver, for work space of its libraries and for gaps
RELEASED = {"speech": 1262 * 10**6, "picture": 2444 * 10**6}  # bytes of the speech encoder, and of CLIP's vision tower
SPEECH_WINDOW = 900 << 20  # bytes that the released speech encoder takes for a minute of sound
STARTED = 120 << 20  # bytes of libraries and compiled kernels that a CPU's run adds to the program
WRITTEN = 10  # bytes per pixel of each frame that the video encoder looks ahead
LOOK_AHEAD = 50


class Parts(NamedTuple):
    """Bytes of the weights of a model: of each step that is streamed, and of the others."""

    steps: list[int]
    rest: int


@dataclass(frozen=True)
class Models:
    """Sizes of the models of a task, in bytes at work; `stored` are the bytes of the files of the transformers."""

    experts: tuple[int, ...]
    stored: tuple[int, ...]
    sizes: WanModelConfig
    dit: Parts
    text: int
    text_parts: Parts
    vae: int
    network: VAEConfig
    speech: int = 0
    picture: int = 0
    is_mapped: bool = False  # transformers at work have the types of their files


@dataclass(frozen=True)
class Work:
    """Values that decide what a run computes; the latent is that of the largest clip."""

    config: TaskConfig
    size: Size
    latent_frames: int
    steps: int
    branches: int  # of guidance
    clips: int = 1
    has_image: bool = False
    reuses: bool = False
    samples: bool = True  # else all clips are sampled already, and only decoded

    @property
    def latent(self) -> LatentShape:
        """Shape of the latent of the largest clip."""
        frames = self.config.vae_stride[0] * (self.latent_frames - 1) + 1
        return geometry.latent_shape(self.size, frames, self.config.vae_stride, self.config.z_dim)

    @property
    def tokens(self) -> int:
        """Number of tokens, with those beside the video."""
        tokens = geometry.token_count(self.latent, self.config.patch_size)
        return tokens + math.ceil(MODELS[self.config.model_type].extra_frames * tokens / self.latent_frames)

    @property
    def frames(self) -> int:
        """Number of frames that are decoded, with those before the clip."""
        stride, rest = self.config.vae_stride[0], self.config.frame_rest
        return self.config.motion_frames + stride * (self.latent_frames - rest) + rest

    @property
    def encoded(self) -> int:
        """Number of frames that are encoded together."""
        if not self.has_image:
            return 0
        return self.frames if self.config.model_type in ("i2v", "animate") else max(1, self.config.motion_frames)


def expected_bytes(
    config: TaskConfig, checkpoint: Path, request: Request, runtime: Runtime, latent: LatentShape | None = None
) -> int:
    """Expected peak memory in bytes: of the device, or on a CPU of the whole process.

    `latent` is the shape of the largest clip, by default that of the one clip of a video.
    """
    phases = phase_bytes(models_of(config, checkpoint, runtime), work_of(config, request, latent), runtime)
    if runtime.device.type != "cpu":
        return max(phases.values())
    # the pictures themselves are read already, and part of the program
    read = sum(kept_bytes(picture.size) for picture in (request.image, request.last_image) if picture is not None)
    resident = phases["text"]
    phases["encode"] = max(phases["encode"], resident + picture_bytes(request) - read)
    return max(phases.values()) + (memory.peak_memory(runtime.device) or 0)


def work_of(config: TaskConfig, request: Request, latent: LatentShape | None = None, clips: int = 1) -> Work:
    """Say what a request computes, with the latent of its largest clip."""
    size = request.framing.used
    latent = latent or geometry.latent_shape(size, request.frame_num, config.vae_stride, config.z_dim)
    return Work(
        config,
        size,
        latent[1],
        request.steps,
        2 if any(scale != 1 for scale in request.guidance) else 1,
        clips,
        any(given is not None for given in (request.image, request.last_image, request.performance)),
        bool(request.reuse),
    )


def models_of(config: TaskConfig, checkpoint: Path, runtime: Runtime) -> Models:
    """Measure the models of a checkpoint, from headers."""
    text, vae, speech, picture = (
        part(checkpoint, name) if name else None
        for name in (
            config.t5_checkpoint,
            config.vae_checkpoint,
            config.speech_checkpoint,
            config.clip_checkpoint,
        )
    )
    folders = [checkpoint / expert for expert in config.experts]
    sizes = expert_config(checkpoint, config, config.experts[0])
    dit = dit_parts(config, sizes, runtime)
    experts = (sum(dit.steps) + dit.rest,) * len(folders)
    if runtime.quantize is None:
        experts = tuple(transformer_bytes(folder, runtime) for folder in folders)
    if not config.uses_lora and runtime.dtype == torch.bfloat16:
        folders = [freshest(folder, runtime.quantize) for folder in folders]
    stored = tuple(map(tensor_bytes, folders))
    source = open_source(text)
    text_sizes = source.inferred(T5Config.from_state)
    return Models(
        experts,
        stored,
        sizes,
        dit,
        stored_bytes(text),
        parts_of(empty(lambda: T5Encoder(text_sizes)), lambda name: config.t5_dtype),
        stored_bytes(vae),
        open_vae(VAES[config.z_dim].network, vae)[1],
        stored_bytes(speech) if speech else 0,
        4 * sum(map(math.prod, open_clip(picture)[0].shapes().values())) if picture else 0,
        is_mapped=experts == stored and not config.uses_lora,
    )


def released_models(config: TaskConfig, runtime: Runtime) -> Models:
    """Measure the released models of a task, without their files."""
    kind, network = MODELS[config.model_type], VAES[config.z_dim].network
    sizes, vae = kind.config_class.from_dict(config.architecture()), network.config_class()
    dit, text = (
        dit_parts(config, sizes, runtime),
        parts_of(empty(lambda: T5Encoder(UMT5_XXL)), lambda _: torch.bfloat16),
    )
    whole = parts_of(empty(lambda: kind(sizes)), lambda _: torch.float32)
    count = len(config.experts)
    return Models(
        (sum(dit.steps) + dit.rest,) * count,
        (sum(whole.steps) + whole.rest,) * count,  # files have float32
        sizes,
        dit,
        sum(text.steps) + text.rest,
        text,
        sum(t.nbytes for t in empty(lambda: network(vae)).state_dict().values()),
        vae,
        RELEASED["speech"] if config.speech_checkpoint else 0,
        RELEASED["picture"] if config.clip_checkpoint else 0,
    )


def phase_bytes(models: Models, work: Work, runtime: Runtime) -> dict[str, int]:
    """Expected peak memory in bytes of each phase, as in `expected_bytes`."""
    parallel, size, on_cpu = runtime.parallel, work.size, runtime.device.type == "cpu"
    experts = [whole // (parallel.replica_size if parallel.dit_fsdp else 1) for whole in models.experts]
    text = models.text if runtime.t5_device == runtime.device else 0
    text //= parallel.replica_size if parallel.t5_fsdp else 1
    denoise = denoise_of(models, work, runtime)
    rows = size[1] if runtime.vae_tile else math.ceil(size[1] / parallel.replica_size)
    how = (runtime.vae_tile, on_cpu, runtime.vae_frames, runtime.conv_dtype)
    decode = decode_bytes(models.network, (size[0], rows), work.frames, *how)
    encode = encode_bytes(models.network, size, work.encoded, *how) if work.encoded else 0
    window = SPEECH_WINDOW if models.speech else 0
    if on_cpu:
        encode, decode = encode + STARTED, decode + STARTED
        if not runtime.vae_tile:  # tiles are decoded before the first frame is written
            decode += size[0] * size[1] * WRITTEN * min(work.frames, LOOK_AHEAD)
    phases = {"text": 0, "encode": encode, "denoise": denoise, "decode": decode}
    vae = models.vae * runtime.conv_dtype.itemsize // torch.float32.itemsize
    if not work.samples:
        return {"decode": vae + decode}
    if runtime.offload is Offload.NONE or on_cpu:
        whole = text + sum(experts) + vae + models.speech + models.picture
        beside = dict.fromkeys(phases, whole)
        phases["encode"] = max(encode, window)
    else:
        if runtime.offload is Offload.BLOCK:
            experts, text = [streamed_bytes(models.dit, runtime.stay)], min(text, streamed_bytes(models.text_parts))
        beside = {"text": text, "encode": vae, "denoise": max(experts), "decode": vae}
        if parallel.t5_fsdp:  # its parts do not leave
            beside = {phase: size + text * (phase != "text") for phase, size in beside.items()}
        phases["encode"] = max(encode, models.speech + window - vae, models.picture - vae)  # one after the other
    return {phase: beside[phase] + needed for phase, needed in phases.items()}


def dit_parts(config: TaskConfig, sizes: WanModelConfig, runtime: Runtime) -> Parts:
    """Measure a transformer of a task as it works."""

    def at_work(name: str) -> torch.dtype:
        return torch.float32 if WanModel.keeps_float32(name) and not runtime.convert_model_dtype else runtime.dtype

    return parts_of(quantise(empty(lambda: MODELS[config.model_type](sizes)), runtime), at_work)


def tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in a folder."""
    source = open_copy(path)
    return sum(math.prod(source.shape(key)) * source.dtype(key).itemsize for key in source.names())


def parts_of(model: nn.Module, at_work: Callable[[str], torch.dtype]) -> Parts:
    """Measure a model; `at_work` tells the types of its weights."""
    steps = streamed_weights(model).values()
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    quantised = {b for m in model.modules() if isinstance(m, QuantisedLinear) for b in m.buffers(recurse=False)}
    types = {name: t.dtype if t in quantised else at_work(name) for name, t in tensors.items()}
    whole = sum(tensor.numel() * types[name].itemsize for name, tensor in tensors.items())
    sizes = [Unit(list(step.values()), [types[name] for name in step]).nbytes for step in steps]
    return Parts(sizes, whole - sum(sizes))


def streamed_bytes(parts: Parts, stay: int = 0) -> int:
    """Bytes on the device of a model whose steps are streamed, beside those of its first steps that `stay` there."""
    bound = num_bound(parts.steps, stay)
    left = parts.steps[bound:]
    return parts.rest + sum(parts.steps[:bound]) + min(num_slots(parts.steps), len(left)) * max(left, default=0)


def denoise_of(models: Models, work: Work, runtime: Runtime) -> int:
    """Bytes that denoising takes beside the weights, in one of the processes."""
    ulysses, dim = runtime.parallel.ulysses_size, models.sizes.dim
    tokens = math.ceil(work.tokens / ulysses)
    needed = denoise_bytes(tokens, dim, models.sizes.ffn_dim, runtime.dtype)
    needed += math.ceil(MODELS[work.config.model_type].extra_bytes * tokens * dim)
    if runtime.together:
        needed += tokens * dim * torch.float32.itemsize  # the stream of the other branch
    if work.reuses:
        needed += work.branches * reuse_bytes(tokens * ulysses, dim, runtime.dtype)
    return needed


def transformer_bytes(folder: Path, runtime: Runtime) -> int:
    """Bytes of the weights of a loaded expert: some stay float32 unless everything is converted."""
    source = open_source(folder)

    def width(name: str) -> int:
        kept = WanModel.keeps_float32(name) and not runtime.convert_model_dtype
        return torch.float32.itemsize if kept else runtime.dtype.itemsize

    shapes = {name: source.shape(key) for name, key in released_names(source.names())[0].items()}
    return sum(math.prod(shape) * width(name) for name, shape in shapes.items())


def reuse_bytes(tokens: int, dim: int, dtype: torch.dtype) -> int:
    """Bytes that a `BlockCache` keeps for a branch of guidance."""
    return int(tokens * dim * (dtype.itemsize + 4 / SAMPLED))


def denoise_bytes(num_tokens: int, dim: int, ffn_dim: int, dtype: torch.dtype) -> int:
    """Bytes that denoising takes beside the weights: the float32 stream and a block's largest intermediates.

    It is within 3 % of the counts of the released models.
    """
    half = dtype.itemsize
    attend = (3 * 4 + 3 * half) * dim  # stream, q or k in float32 around norm and rotation; input, q and v
    feed = (2 * 4 + 2 * half) * dim + half * ffn_dim  # stream and its sum; input and output; after the fused GELU
    return num_tokens * max(attend, feed)


def decode_bytes(
    vae: VAEConfig,
    size: Size,
    frame_num: int,
    tile: int | None,
    on_cpu: bool = False,
    at_once: int | None = None,
    conv_dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes that decoding frames of a size (width, height) in float32 takes beside the weights of the VAE.

    In tiles it keeps the features of all latent frames, and the video in the memory of the CPU. `at_once` frames are
    computed together, by convolutions in `conv_dtype`.
    """
    entered, widths = vae.decoder_inputs, vae.decoder_widths[1:]
    levels = [4**level for level in range(len(widths) - 1, -1, -1)]  # positions of full resolution for one
    doubling = (*vae.temporal_downsample[::-1], False)
    caches = sum(HISTORY * wide / level for wide, level, flag in zip(widths, levels, doubling, strict=True) if flag)
    caches += _cached(entered[::-1], widths[::-1], vae.num_res_blocks + 1)
    caches += HISTORY * widths[-1] * (frame_num > 1)  # of the last convolution; in the first frame it comes later
    frames, pair = _together(at_once, frame_num)
    before = 0.0  # what stages hold of their input, from which the next ones take some frames
    for given, wide, level in list(zip(entered, widths, levels, strict=True))[:-1]:
        held = LATENTS_AT_ONCE if level == levels[0] and frame_num > 1 else frames
        before += (held * wide + (pair * given if vae.shortcuts or frames < pair else 0)) / level
    shown = 2 * PIXEL_CHANNELS * vae.patch**2  # of this part and the one before
    values = _of_block(frames, entered[-1], widths[-1], conv_dtype, frame_num)
    values += (before + frames * shown) * torch.float32.itemsize
    values *= _reordered(widths[-1], on_cpu and not tile)
    collected = _collected(vae, widths[0], size, frame_num) if tile else 0
    if tile and on_cpu:
        collected += PIXEL_CHANNELS * frame_num * size[0] * size[1]
    positions = _positions(vae, size, tile, vae.decoder_halo)
    return math.ceil(torch.float32.itemsize * collected + positions * (conv_dtype.itemsize * caches + values))


def encode_bytes(
    vae: VAEConfig,
    size: Size,
    frame_num: int,
    tile: int | None,
    on_cpu: bool = False,
    at_once: int | None = None,
    conv_dtype: torch.dtype = torch.float32,
) -> int:
    """Bytes that encoding takes beside the weights of the VAE, as `decode_bytes`; all frames are in memory."""
    widths = vae.encoder_widths
    frames, _ = _together(at_once, frame_num)
    caches, largest = HISTORY * PIXEL_CHANNELS * vae.patch**2, 0.0
    for level, (given, wide) in enumerate(pairwise(widths)):
        caches += HISTORY * (given + (2 * vae.num_res_blocks - 1) * wide) / 4**level
        values = _of_block(frames, given, wide, conv_dtype, frame_num)
        values += frames * given * torch.float32.itemsize * vae.shortcuts  # the input of the stage
        values *= _reordered(wide, on_cpu and not tile) / 4**level
        # in the first frame caches of later stages are empty
        largest = max(largest, values + (conv_dtype.itemsize * caches if frame_num == 1 else 0))
    if frame_num > 1:
        caches += HISTORY * 4 * widths[-1] / 4 ** (len(widths) - 2)
        largest += conv_dtype.itemsize * caches
    chunk = min(frame_num, LATENTS_AT_ONCE * vae.stride[0])
    if frame_num > 1:
        largest += torch.float32.itemsize * _waiting(vae, at_once or FRAMES_AT_ONCE[-1], chunk, frame_num)
    collected = PIXEL_CHANNELS * (frame_num + chunk) * size[0] * size[1]
    collected += _collected(vae, widths[-1], size, frame_num) if tile else 0
    return math.ceil(torch.float32.itemsize * collected + _positions(vae, size, tile, vae.encoder_halo) * largest)


def _together(at_once: int | None, frame_num: int) -> tuple[int, int]:
    """Frames that high resolutions take together, and those that come from a change of the frame rate together."""
    later = max(1, frame_num - 1)  # the first frame comes alone
    return min(at_once or FRAMES_AT_ONCE[-1], later), min(max(at_once or FRAMES_AT_ONCE[-1], 2), later)


def _waiting(vae: VAEConfig, at_once: int, chunk: int, frame_num: int) -> float:
    """Values per position of the encoder's latents, and of what its stages have of their input before they work."""
    latents = (frame_num - 1) // vae.stride[0] + 1
    waiting, given = 2 * vae.z_dim * latents / 4 ** len(vae.temporal_downsample), chunk
    for stage in reversed(range(len(vae.temporal_downsample))):
        taken = max(at_once, 1 + vae.temporal_downsample[stage]) * 2 ** sum(vae.temporal_downsample[:stage])
        frames = max(0, given - taken) / 2 ** sum(vae.temporal_downsample[: stage + 1])
        waiting += frames * vae.encoder_widths[stage + 1] / 4 ** (stage + 1)
        given = min(given, taken)
    return waiting


def _of_block(frames: int, given: int, width: int, conv_dtype: torch.dtype, frame_num: int) -> int:
    """Bytes per position of a residual block from `given` to `width` channels, at its largest moment."""
    whole, part = torch.float32.itemsize, conv_dtype.itemsize
    past = HISTORY if frame_num > 1 else 0
    between = 2 * whole if part < whole else 0  # of one frame: normalised, before it is rounded
    stream, result = frames * (given + 2) * whole, frames * width * part  # and norms of one channel
    shortcut = frames * width * whole if given != width else 0
    between -= HISTORY * part if between and not past else 0  # the first frame is cached after that
    first = stream + (frames + past) * given * part + max(result, between * given)
    second = stream + shortcut + result + (frames + past) * width * part + max(result, between * width)
    added = stream + shortcut + 2 * result + frames * width * whole if part < whole else 0
    return max(first, second, added)


def _cached(entered: list[int], widths: list[int], blocks: int) -> float:
    """Values per position that convolutions cache, of all stages, the highest resolution first."""
    stages = enumerate(zip(entered, widths, strict=True))
    caches = sum((first + (2 * blocks - 1) * width) / 4**level for level, (first, width) in stages)
    return HISTORY * (caches + 4 * widths[-1] / 4 ** (len(widths) - 1))


def _reordered(width: int, on_cpu: bool) -> float:
    return REORDERED if on_cpu and width < MIN_CHANNELS else 1


def _collected(vae: VAEConfig, width: int, size: Size, frame_num: int) -> int:
    """Values of all frames at latent resolution."""
    return width * math.prod(geometry.latent_shape(size, frame_num, vae.stride, 1))


@cache
def _positions(vae: VAEConfig, size: Size, tile: int | None, halo: int) -> int:
    """Positions at the network's full resolution that are computed together: a frame, or the largest tile."""
    sides = [math.ceil(side / stride) for side, stride in zip(size, vae.stride[:0:-1], strict=True)]
    if tile:
        columns, rows = tiles(*sides, max(1, tile // vae.stride[1]), halo)
        sides = [max(t.read.stop - t.read.start for t in axis) for axis in (columns, rows)]
    return math.prod(sides) * (vae.stride[1] // vae.patch) ** 2


@cache
def tile_factor(vae: VAEConfig, size: Size, tile: int | None) -> float:
    """Work of decoding in tiles, with the margins around them, as a multiple of that of whole frames."""
    if not tile:
        return 1.0
    sides = [math.ceil(side / stride) for side, stride in zip(size, vae.stride[:0:-1], strict=True)]
    axes = tiles(*sides, max(1, tile // vae.stride[1]), vae.decoder_halo)
    return math.prod(sum(t.read.stop - t.read.start for t in axis) for axis in axes) / math.prod(sides)
