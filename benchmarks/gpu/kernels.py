"""Every kernel of attention against float32, with its speed, and what the device makes of a GELU in a product."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.common import median_seconds
from benchmarks.gpu.runner import Setting
from wan.modules.attention import BACKENDS, PACKAGES, attention, check_backend, resolve_backend
from wan.modules.layers import fuses_gelu_tanh

LIMITS = {"sage": 5e-2}  # it quantises
LIMIT = 1e-2
SHAPES = {  # tokens of queries and keys, and real keys of each sample
    "self": (700, 700, None),
    "cross": (700, 512, None),
    "padded": (300, 300, (300, 211)),
}


def kernels(setting: Setting) -> list[str]:
    """Compare all kernels that are installed; one that is not is a line."""
    torch.set_grad_enabled(False)
    device, dtype = setting.device, torch.bfloat16
    means = resolve_backend("auto", device, dtype, 128)
    lines = [f"auto means {means}", f"products apply a tanh GELU: {fuses_gelu_tanh(device, dtype)}"]
    tokens, heads = (256, 2) if setting.toy else (16384, 40)
    for name in BACKENDS:
        try:
            if name == "sdpa_cudnn" and device.type != "cuda":
                raise ValueError("it needs a CUDA device")
            if name in PACKAGES:
                check_backend(name, device, dtype)
        except ValueError as reason:
            lines.append(f"{name}: not here: {reason}")
            continue
        errors = {shape: error(name, *sizes, device) for shape, sizes in SHAPES.items()}
        limit = LIMITS.get(name, LIMIT)
        assert all(value <= limit for value in errors.values()), f"{name}: errors {errors}, at most {limit}"
        q = torch.randn(1, tokens, heads, 128, device=device, dtype=dtype)
        taken = median_seconds(lambda q=q, name=name: attention(q, q, q, backend=name), device, rounds=3)
        rate = 4 * tokens**2 * heads * 128 / taken / 1e12
        lines.append(f"{name}: largest relative error {max(errors.values()):.1e}, {rate:.3g} TFLOP/s")
    return lines


def error(name: str, queries: int, keys: int, kv_lens: tuple[int, ...] | None, device: torch.device) -> float:
    """Compare a kernel with attention in float32 of the same operands: relative error of real queries."""
    generator, batch = torch.Generator().manual_seed(0), len(kv_lens or (1,))
    lengths = queries, keys, keys
    drawn = (torch.randn(batch, length, 3, 128, generator=generator) for length in lengths)
    q, k, v = (x.to(device, torch.bfloat16) for x in drawn)
    found = attention(q, k, v, kv_lens, backend=name).float()
    return max(
        _relative(found[i : i + 1], _exact(q[i : i + 1], k[i : i + 1, :length], v[i : i + 1, :length]))
        for i, length in enumerate(kv_lens or (keys,))
    )


def _exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    return ((q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2)


def _relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()
