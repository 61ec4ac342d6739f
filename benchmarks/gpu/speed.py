"""Benchmarks at real size with random weights: products, copies, forwards, decoding and encoding of text."""

from __future__ import annotations

import gc

import torch

from benchmarks.common import dit_flops, gemm_ceiling, median_seconds, seconds
from benchmarks.counted.cases import clip_shape
from benchmarks.gpu.runner import GB, Setting, Skip
from benchmarks.gpu.weights import autoencoder, draw, fitting_layers, forward_of, transformer
from wan.configs import WAN_CONFIGS
from wan.geometry import token_count
from wan.modules.t5 import UMT5_XXL, T5Config, T5Encoder

LONG = 25.0  # seconds that one measured forward may take
FORWARDS = {"480p": ("t2v-A14B", "832*480"), "720p": ("t2v-A14B", "1280*720"), "5b": ("ti2v-5B", "1280*704")}
TINY_T5 = T5Config(vocab_size=100, dim=32, dim_attn=32, dim_ffn=64, num_heads=2, num_layers=2)


def rates(setting: Setting) -> list[str]:
    """Measure products and copies, on which all predictions stand."""
    device = setting.device
    shapes = [(64, 64, 64)] if setting.toy else None
    lines = [f"products in bfloat16: {gemm_ceiling(device, shapes=shapes) / 1e12:.3g} TFLOP/s"]
    count = 1 << (16 if setting.toy else 29)
    target = torch.empty(count, dtype=torch.uint8, device=device)
    for name, pin in (("pinned", True), ("pageable", False)):
        source = torch.empty(count, dtype=torch.uint8, pin_memory=pin and device.type == "cuda")
        taken = median_seconds(lambda source=source: target.copy_(source, non_blocking=True), device, rounds=3)
        lines.append(f"{name} memory to the device: {count / taken / GB:.3g} GB/s")
    taken = median_seconds(lambda: target.clone(), device, rounds=3)
    lines.append(f"memory of the device: {2 * count / taken / GB:.4g} GB/s")
    return lines


def forward(name: str):
    """Make the part that measures one branch of guidance of one step, eager and compiled."""

    def run(setting: Setting) -> list[str]:
        torch.set_grad_enabled(False)
        task, size = FORWARDS[name]
        whole = WAN_CONFIGS[task].architecture()["num_layers"]
        layers = 2 if setting.toy else fitting_layers(task, size, setting.room, most=4)
        lines, first = [], measure(setting, task, size, layers)
        lines.append(f"{layers} of {whole} blocks: {first:.3f} s, {first / layers * whole:.3f} s for all")
        if not setting.toy and first / layers * whole < LONG:
            most = fitting_layers(task, size, setting.room)
            if most > layers:
                taken = measure(setting, task, size, most)
                lines.append(f"{most} of {whole} blocks: {taken:.3f} s{share(setting, task, size, most, taken)}")
        compiled = measure(setting, task, size, layers, compiled=not setting.toy)
        lines.append(f"{layers} blocks compiled: {compiled:.3f} s, {first / compiled:.2f} times as fast")
        return lines

    return run


def measure(setting: Setting, task: str, size: str, layers: int, compiled: bool = False) -> float:
    """Measure a forward in seconds: the median of three, one where it is long."""
    gc.collect()
    model = transformer(task, setting.device, layers, toy=setting.toy)
    if compiled:
        for block in model.blocks:
            block.compile()
    run = forward_of(model, task, size, setting.device, setting.toy)
    run(model)
    once = seconds(lambda: run(model), setting.device)
    return once if once > 5 else median_seconds(lambda: run(model), setting.device, rounds=3, warmup=0)


def share(setting: Setting, task: str, size: str, layers: int, taken: float) -> str:
    """Name the FLOPs a second of a forward."""
    sizes = WAN_CONFIGS[task].architecture()
    tokens = token_count(clip_shape(task, size))
    work = dit_flops(
        dim=sizes["dim"], ffn_dim=sizes["ffn_dim"], num_layers=layers, tokens=tokens, context_tokens=sizes["text_len"]
    )
    return f", {sum(work) / taken / 1e12:.0f} TFLOP/s"


def decoding(task: str, size: str):
    """Make the part that measures decoding, whole or in tiles where memory is short."""

    def run(setting: Setting) -> list[str]:
        torch.set_grad_enabled(False)
        device = setting.device
        vae = autoencoder(task, device, setting.toy)
        shape = clip_shape(task, "64*64" if setting.toy else size, 5 if setting.toy else 17)
        latent = torch.randn(*shape, device=device)
        lines = []
        for tile in (None, 256):
            vae.tiling = tile
            try:
                taken = seconds(lambda: [chunk.cpu() for chunk in vae.decode_stream(latent)], device)
            except torch.OutOfMemoryError:
                lines.append(f"{'tiles of 256' if tile else 'whole frames'}: more than the memory of the device")
                continue
            frames = WAN_CONFIGS[task].vae_stride[0] * (shape[1] - 1) + 1
            what = "tiles of 256" if tile else "whole frames"
            lines.append(f"{what}: {frames} frames {taken:.2f} s")
        return lines

    return run


def text(setting: Setting) -> list[str]:
    """Measure the text encoder with a prompt of 512 tokens."""
    torch.set_grad_enabled(False)
    if not setting.toy and setting.room < 13 * GB:
        raise Skip(f"it needs 13 GB, and {setting.room / GB:.1f} are free; --offload block streams it")
    config = TINY_T5 if setting.toy else UMT5_XXL
    with torch.device("meta"):
        model = T5Encoder(config)
    draw(model, setting.device, lambda name: torch.bfloat16)
    ids = torch.randint(0, config.vocab_size, (1, 16 if setting.toy else 512), device=setting.device)
    taken = median_seconds(lambda: model(ids), setting.device, rounds=3)
    return [f"{ids.shape[1]} tokens: {taken * 1e3:.1f} ms"]
