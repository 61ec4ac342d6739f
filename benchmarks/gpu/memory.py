"""Policies of memory on a device: the same values from each, and peaks against those that are counted and planned."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.counted import cases
from benchmarks.counted.count import Counter
from benchmarks.gpu.runner import GB, Setting
from benchmarks.gpu.weights import autoencoder, fitting_layers, forward_of, transformer, vae_sizes
from wan.clips import ClipSampled, FramesDecoded
from wan.configs import NANO_CONFIGS, WAN_CONFIGS
from wan.forecast import decode_bytes, denoise_bytes
from wan.geometry import parse_size, token_count
from wan.jobs import PIPELINES
from wan.memory import Weights
from wan.nano.random import write_random_checkpoint
from wan.request import Request
from wan.runtime import Offload, Runtime

NEAR = 0.10  # share by which the allocator's peak may differ from what was counted or planned
TOY = {"layers": 2, "frame_num": 5}


def policies(setting: Setting) -> list[str]:
    """Make videos of random miniatures under every policy: latents and frames are equal bit for bit."""
    lines = []
    for task in ("t2v-A14B", "ti2v-5B"):
        config = NANO_CONFIGS[task]
        request = Request.create(config, prompt="a red circle", frame_num=5, seed=1, steps=4, noise_device="cpu")
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = write_random_checkpoint(Path(folder), task)
            videos = {
                offload: video(task, checkpoint, request, setting.device, offload)
                for offload in ("none", "model", "block")
            }
        for offload, (latent, frames) in videos.items():
            assert torch.equal(latent, videos["none"][0]), f"{task}: latents differ with --offload {offload}"
            assert torch.equal(frames, videos["none"][1]), f"{task}: frames differ with --offload {offload}"
        lines.append(f"{task}: equal with {', '.join(videos)}")
    return lines


def video(task: str, checkpoint: Path, request: Request, device: torch.device, offload: str) -> tuple[Tensor, Tensor]:
    """Make a video; return its latent and its frames."""
    runtime = Runtime.from_flags(device=str(device), offload=offload)
    latent, frames = None, []
    for event in PIPELINES[task](NANO_CONFIGS[task], checkpoint, runtime=runtime).run(request):
        if isinstance(event, ClipSampled):
            latent = event.clip.latent
        elif isinstance(event, FramesDecoded):
            frames.append(event.frames)
    return latent, torch.cat(frames, dim=1)


def streaming(setting: Setting) -> list[str]:
    """Compare forwards with streamed blocks of the released width with resident ones: equal bit for bit."""
    torch.set_grad_enabled(False)
    device, layers = setting.device, 6 if setting.toy else fitting_layers("t2v-A14B", "832*480", setting.room, most=6)
    model = transformer("t2v-A14B", device, layers, toy=setting.toy)
    for weight in model.parameters():
        weight.data = weight.data.cpu()
    run = forward_of(model, "t2v-A14B", "832*480", device, setting.toy, frame_num=9)
    results, peaks = {}, {}
    for offload, stay in ((Offload.NONE, 0), (Offload.BLOCK, 0), (Offload.BLOCK, 1 << 30)):
        weights = Weights(device, offload, stay=stay)
        weights.add("model", lambda: model, keeps=stay > 0)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for turn in range(3):  # slots are used again
            results[offload, stay, turn] = run(weights.use("model"))[0].cpu()
        peaks[offload, stay] = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        weights.set_offload(Offload.MODEL if offload is Offload.NONE else offload)
        weights.done("model")
    first = results[Offload.NONE, 0, 0]
    assert first.isfinite().all() and first.std() > 0
    assert all(torch.equal(first, result) for result in results.values()), "streamed blocks gave other values"
    found = ", ".join(f"{offload.value} {peak / GB:.2f}" for (offload, _), peak in peaks.items())
    return [f"{layers} blocks, {len(results)} forwards: equal; peaks {found} GB"]


def peaks(setting: Setting) -> list[str]:
    """Compare the allocator's peaks with counted and planned ones, for forwards and for decoding."""
    torch.set_grad_enabled(False)
    lines, wrong = [], []
    for task, size in (("t2v-A14B", "832*480"), ("ti2v-5B", "1280*704")):
        layers = 2 if setting.toy else fitting_layers(task, size, setting.room, most=4)
        given = TOY if setting.toy else {"layers": layers}
        model = transformer(task, setting.device, layers, toy=setting.toy)
        run = forward_of(model, task, size, setting.device, setting.toy)
        added = added_peak(lambda model=model, run=run: run(model), setting.device)
        counter = Counter()
        with cases.pretended():
            cases.forward(task, size, counter, **given)
        shape, config = cases.clip_shape(task, size, given.get("frame_num")), model.config
        sizes = WAN_CONFIGS[task].architecture()
        tokens = token_count(shape, config.patch_size)
        planned = denoise_bytes(tokens, sizes["dim"], sizes["ffn_dim"], torch.bfloat16)
        wrong += compare(lines, f"{task} {size}, a forward", added, counter.peak - counter.weights, planned)
        del model, run
        gc.collect()
    for task, size in (("t2v-A14B", "832*480"), ("ti2v-5B", "1280*704")):
        frames = 5 if setting.toy else 17
        asked = "64*64" if setting.toy else size
        vae = autoencoder(task, setting.device, setting.toy)
        counter = Counter()
        with cases.pretended():
            cases.decode(task, asked, None, counter, frame_num=frames, sizes=vae_sizes(task, setting.toy))
        needed = counter.peak
        if needed > setting.room:
            lines.append(f"{task} {asked}: decoding takes {needed / GB:.1f} GB, not tried")
            continue
        latent = torch.randn(*cases.clip_shape(task, asked, frames), device=setting.device)
        added = added_peak(lambda vae=vae, latent=latent: [None for _ in vae.decode_stream(latent)], setting.device)
        planned = decode_bytes(vae.model.config, parse_size(asked), frames, None)
        wrong += compare(lines, f"{task} {asked}, decoding {frames} frames", added, needed - counter.weights, planned)
        del vae, latent
        gc.collect()
    assert not wrong, "; ".join([*wrong, "all: ", *lines])
    return lines


def added_peak(run: Callable[[], object], device: torch.device) -> int | None:
    """Peak of the allocator above what is there before, in bytes; None where there is none."""
    if device.type != "cuda":
        run()
        return None
    run()  # kernels are chosen and their work space is taken
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def compare(lines: list[str], name: str, seen: int | None, counted: int, planned: int) -> list[str]:
    """Add a line, and return what differs by more than it may. A CPU takes other branches: it is not compared."""
    measured = "not measured" if seen is None else f"{seen / GB:.2f}"
    lines.append(f"{name}: GB measured {measured}, counted {counted / GB:.2f}, planned {planned / GB:.2f}")
    far = {"counted": counted, "planned": planned} if seen is not None else {}
    return [f"{name}: {what} differs" for what, value in far.items() if abs(value / seen - 1) > NEAR]
