"""Forecast of the memory that a run will take, from file headers and shapes, before any weight is read."""

import math
from collections.abc import Callable
from dataclasses import replace
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
from wan.checkpoint.source import open_source
from wan.configs import TaskConfig
from wan.experts import quantise
from wan.geometry import LatentShape, Size
from wan.images import kept_bytes
from wan.modules.block_cache import SAMPLED
from wan.modules.model import WanModel
from wan.modules.quantised import LARGEST
from wan.modules.t5 import T5Config, T5Encoder
from wan.modules.vae import LATENTS_AT_ONCE, PIXEL_CHANNELS, VAEConfig, tiles
from wan.modules.vae_blocks import FRAMES_AT_ONCE, HISTORY
from wan.modules.vae_inference import MIN_CHANNELS
from wan.modules.vae_wrapper import open_vae
from wan.request import Request, picture_bytes
from wan.runtime import Offload, Runtime
from wan.streaming import Unit, num_bound, num_slots, streamed_weights

REORDERED = 1.5  # whole frames on a CPU: convolutions of few channels copy them, and the heap keeps gaps
RESERVE = 3 << 29  # bytes on a device for its driver, for work space of its libraries and for gaps
SPEECH_WINDOW = 900 << 20  # bytes that the released speech encoder takes for a minute of sound
STARTED = 120 << 20  # bytes of libraries and compiled kernels that a CPU's run adds to the program
WRITTEN = 10  # bytes per pixel of each frame that the video encoder looks ahead
LOOK_AHEAD = 50


def expected_bytes(
    config: TaskConfig, checkpoint: Path, request: Request, runtime: Runtime, latent: LatentShape | None = None
) -> int:
    """Expected peak memory in bytes: of the device, or on a CPU of the whole process.

    `latent` is the shape of the largest clip, by default that of the one clip of a video.
    """
    return max(phase_bytes(config, checkpoint, request, runtime, latent).values())


def resolved(
    config: TaskConfig, checkpoint: Path, request: Request, runtime: Runtime, latent: LatentShape | None = None
) -> Runtime:
    """Choose the policy of `--offload auto`: the fastest one that the free memory of the device allows."""
    if runtime.offload is not Offload.AUTO:
        return runtime
    room = memory.free_memory(runtime.device)
    policies = [Offload.NONE] if runtime.parallel.dit_fsdp or runtime.parallel.t5_fsdp else list(Offload)[:3]
    for policy in policies:
        chosen = replace(runtime, offload=policy)
        needed = expected_bytes(config, checkpoint, request, chosen, latent)
        if room is None or needed + RESERVE <= room:
            break
    return chosen


def phase_bytes(
    config: TaskConfig, checkpoint: Path, request: Request, runtime: Runtime, latent: LatentShape | None = None
) -> dict[str, int]:
    """Expected peak memory in bytes of each phase, as in `expected_bytes`."""
    parallel, size, on_cpu = runtime.parallel, request.framing.used, runtime.device.type == "cpu"
    experts = [transformer_bytes(checkpoint / expert, runtime) for expert in config.experts]
    experts = [whole // (parallel.replica_size if parallel.dit_fsdp else 1) for whole in experts]
    text_path, vae_path = (part(checkpoint, name) for name in (config.t5_checkpoint, config.vae_checkpoint))
    text = stored_bytes(text_path) if runtime.t5_device == runtime.device else 0
    text //= parallel.replica_size if parallel.t5_fsdp else 1
    vae = stored_bytes(vae_path) * runtime.vae_dtype.itemsize // torch.float32.itemsize

    model = expert_config(checkpoint, config, config.experts[0])
    latent = latent or geometry.latent_shape(size, request.frame_num, config.vae_stride, config.z_dim)
    tokens = geometry.token_count(latent, config.patch_size)
    tokens += math.ceil(MODELS[config.model_type].extra_frames * tokens / latent[1])
    tokens = math.ceil(tokens / parallel.ulysses_size)
    denoise = denoise_bytes(tokens, model.dim, model.ffn_dim, runtime.dtype)
    if request.reuse:
        branches = 2 if any(scale != 1 for scale in request.guidance) else 1
        denoise += branches * reuse_bytes(tokens * parallel.ulysses_size, model.dim, runtime.dtype)

    network = open_vae(VAES[config.z_dim].network, vae_path)[1]
    rows = size[1] if runtime.vae_tile else math.ceil(size[1] / parallel.replica_size)
    stride = config.vae_stride[0]
    frame_num = config.motion_frames + stride * (latent[1] - config.frame_rest) + config.frame_rest
    how = (runtime.vae_tile, on_cpu, runtime.vae_frames, runtime.vae_dtype)
    decode = decode_bytes(network, (size[0], rows), frame_num, *how)
    has_image = request.image is not None or request.last_image is not None or request.performance is not None
    frames = frame_num if config.model_type in ("i2v", "animate") else max(1, config.motion_frames)
    encode = encode_bytes(network, size, frames, *how) if has_image else 0
    if config.speech_checkpoint:
        speech = stored_bytes(part(checkpoint, config.speech_checkpoint))
        encode = max(encode, speech + SPEECH_WINDOW)
        vae += speech if runtime.offload is Offload.NONE else 0
    if config.clip_checkpoint:
        picture_encoder = stored_bytes(part(checkpoint, config.clip_checkpoint))
        encode = max(encode, picture_encoder)
        vae += picture_encoder if runtime.offload is Offload.NONE else 0
    if on_cpu:  # the pictures themselves are read already, and part of the program
        read = sum(kept_bytes(picture.size) for picture in (request.image, request.last_image) if picture is not None)
        encode = max(encode + STARTED, picture_bytes(request) - read)
        decode += STARTED
        if not runtime.vae_tile:  # tiles are decoded before the first frame is written
            decode += size[0] * size[1] * WRITTEN * min(frame_num, LOOK_AHEAD)
    phases = {"text": 0, "encode": encode, "denoise": denoise, "decode": decode}
    if runtime.offload is Offload.NONE or on_cpu:
        beside = dict.fromkeys(phases, text + sum(experts) + vae)
    else:
        if runtime.offload is Offload.BLOCK:
            experts = [streamed_bytes(dit_parts(config, checkpoint, runtime), runtime.stay)]
            text = min(text, streamed_bytes(t5_parts(text_path, config.t5_dtype)))
        beside = {"text": text, "encode": vae, "denoise": max(experts), "decode": vae}
    program = (memory.peak_memory(runtime.device) or 0) if on_cpu else 0
    return {phase: beside[phase] + needed + program for phase, needed in phases.items()}


class Parts(NamedTuple):
    """Bytes of the weights of a model: of each step that is streamed, and of the others."""

    steps: list[int]
    rest: int


def dit_parts(config: TaskConfig, checkpoint: Path, runtime: Runtime) -> Parts:
    """Measure the first transformer of a task as it works."""
    sizes = expert_config(checkpoint, config, config.experts[0])

    def at_work(name: str) -> torch.dtype:
        return torch.float32 if WanModel.keeps_float32(name) and not runtime.convert_model_dtype else runtime.dtype

    return parts_of(quantise(empty(lambda: MODELS[config.model_type](sizes)), runtime), at_work)


def t5_parts(path: Path, dtype: torch.dtype) -> Parts:
    """Measure a text encoder."""
    sizes = open_source(path).inferred(T5Config.from_state)
    return parts_of(empty(lambda: T5Encoder(sizes)), lambda name: dtype)


def parts_of(model: nn.Module, at_work: Callable[[str], torch.dtype]) -> Parts:
    """Measure a model; `at_work` tells the types of its weights."""
    steps = streamed_weights(model).values()
    tensors = dict(chain(model.named_parameters(), model.named_buffers()))
    types = {name: t.dtype if t.dtype in LARGEST else at_work(name) for name, t in tensors.items()}
    whole = sum(tensor.numel() * types[name].itemsize for name, tensor in tensors.items())
    sizes = [Unit(list(step.values()), [types[name] for name in step]).nbytes for step in steps]
    return Parts(sizes, whole - sum(sizes))


def streamed_bytes(parts: Parts, stay: int = 0) -> int:
    """Bytes on the device of a model whose steps are streamed, beside those of its first steps that `stay` there."""
    bound = num_bound(parts.steps, stay)
    left = parts.steps[bound:]
    return parts.rest + sum(parts.steps[:bound]) + min(num_slots(parts.steps), len(left)) * max(left, default=0)


def transformer_bytes(folder: Path, runtime: Runtime) -> int:
    """Bytes of the weights of a loaded expert: some stay float32 unless everything is converted."""
    source = open_source(folder)

    def width(name: str, shape: tuple[int, ...]) -> int:
        if runtime.quantize and name.startswith("blocks.") and name.endswith("weight") and len(shape) == 2:
            return 1
        kept = WanModel.keeps_float32(name) and not runtime.convert_model_dtype
        return torch.float32.itemsize if kept else runtime.dtype.itemsize

    shapes = {name: source.shape(key) for name, key in released_names(source.names())[0].items()}
    return sum(math.prod(shape) * width(name, shape) for name, shape in shapes.items())


def reuse_bytes(tokens: int, dim: int, dtype: torch.dtype) -> int:
    """Bytes that a `BlockCache` keeps for a branch of guidance."""
    return int(tokens * dim * (dtype.itemsize + 4 / SAMPLED))


def denoise_bytes(num_tokens: int, dim: int, ffn_dim: int, dtype: torch.dtype) -> int:
    """Bytes that denoising takes beside the weights: the float32 stream and a block's largest intermediates.

    It is within 3 % of the counts of the released models.
    """
    half = dtype.itemsize
    attend = (4 * 4 + 4 * half) * dim  # stream, q or k in float32 around norm and rotation; q, k, v and input
    feed = (2 * 4 + 2 * half) * dim + 2 * half * ffn_dim  # stream and its sum; input and output; around the activation
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
    collected = PIXEL_CHANNELS * (frame_num + chunk) * size[0] * size[1]
    collected += _collected(vae, widths[-1], size, frame_num) if tile else 0
    return math.ceil(torch.float32.itemsize * collected + _positions(vae, size, tile, vae.encoder_halo) * largest)


def _together(at_once: int | None, frame_num: int) -> tuple[int, int]:
    """Frames that high resolutions take together, and those that come from a change of the frame rate together."""
    later = max(1, frame_num - 1)  # the first frame comes alone
    return min(at_once or FRAMES_AT_ONCE[-1], later), min(max(at_once or FRAMES_AT_ONCE[-1], 2), later)


def _of_block(frames: int, given: int, width: int, conv_dtype: torch.dtype, frame_num: int) -> int:
    """Bytes per position of a residual block from `given` to `width` channels, at its largest moment."""
    whole, part = torch.float32.itemsize, conv_dtype.itemsize
    past = HISTORY if frame_num > 1 else 0
    between = 2 * whole if part < whole else 0  # of one frame: normalised, before it is rounded
    stream, result = frames * (given + 2) * whole, frames * width * part  # and norms of one channel
    shortcut = frames * width * whole if given != width else 0
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


def _positions(vae: VAEConfig, size: Size, tile: int | None, halo: int) -> int:
    """Positions at the network's full resolution that are computed together: a frame, or the largest tile."""
    sides = [math.ceil(side / stride) for side, stride in zip(size, vae.stride[:0:-1], strict=True)]
    if tile:
        columns, rows = tiles(*sides, max(1, tile // vae.stride[1]), halo)
        sides = [max(t.read.stop - t.read.start for t in axis) for axis in (columns, rows)]
    return math.prod(sides) * (vae.stride[1] // vae.patch) ** 2
