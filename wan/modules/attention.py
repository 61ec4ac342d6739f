"""Attention of all models: they call `attention`, and only this file knows the kernels.

PyTorch's SDPA is always complete (key lengths, any device). `auto` uses FlashAttention 3, then 2, when they are
installed and the tensors suit them. On sm90 and sm100 SDPA with cuDNN's kernel is faster than FlashAttention 2 and
comes before it. SageAttention quantises, so it is used only when asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from wan.choices import ATTENTION as BACKEND_NAMES

log = logging.getLogger(__name__)

HALF = (torch.float16, torch.bfloat16)


def attention(
    q: Tensor, k: Tensor, v: Tensor, kv_lens: Sequence[int] | None = None, *, backend: str = "auto"
) -> Tensor:
    """Softmax attention with scale D^-0.5: q [B, Lq, N, D], k and v [B, Lk, N, D] -> [B, Lq, N, D].

    Keys from kv_lens[b] on are padding and are ignored; kv_lens are host integers, so that no device is asked. The
    operands and the result have one dtype.
    """
    if kv_lens is not None and len(kv_lens) != k.shape[0]:
        raise ValueError(f"kv_lens has {len(kv_lens)} entries for a batch of {k.shape[0]}")
    if kv_lens is not None and len(set(kv_lens)) == 1:  # one length: drop the padding instead of masking it
        k, v, kv_lens = k[:, : kv_lens[0]], v[:, : kv_lens[0]], None
    return BACKENDS[resolve_backend(backend, q.device, q.dtype, q.shape[-1])](q, k, v, kv_lens)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, kv_lens: Sequence[int] | None) -> Tensor:
    mask = None
    if kv_lens is not None:
        keys = torch.arange(k.shape[1], device=k.device)
        mask = torch.stack([keys < length for length in kv_lens])[:, None, None]  # [B, 1, 1, Lk], made on the device
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _sdpa_cudnn(q: Tensor, k: Tensor, v: Tensor, kv_lens: Sequence[int] | None) -> Tensor:
    with sdpa_kernel(CUDNN_FIRST, set_priority=True):
        return _sdpa(q, k, v, kv_lens)


# the order in which SDPA looks for a kernel that takes the operands
CUDNN_FIRST = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def _per_sample(kernel: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Let a kernel without key lengths serve them: one call per sample, on its real keys."""

    def run(q: Tensor, k: Tensor, v: Tensor, kv_lens: Sequence[int] | None) -> Tensor:
        if kv_lens is None:
            return kernel(q, k, v)
        rows = [kernel(q[i : i + 1], k[i : i + 1, :n], v[i : i + 1, :n]) for i, n in enumerate(kv_lens)]
        return torch.cat(rows)

    return run


def _flash2(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return importlib.import_module("flash_attn").flash_attn_func(q, k, v)


def _flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = importlib.import_module("flash_attn_interface").flash_attn_func(q, k, v)
    return out[0] if isinstance(out, tuple) else out  # older builds also return the log-sum-exp


def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return importlib.import_module("sageattention").sageattn(q, k, v, tensor_layout="NHD")


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "sdpa": _sdpa,
    "sdpa_cudnn": _sdpa_cudnn,
    "flash2": _per_sample(_flash2),
    "flash3": _per_sample(_flash3),
    "sage": _per_sample(_sage),
}
PACKAGES = {"flash2": "flash_attn", "flash3": "flash_attn_interface", "sage": "sageattention"}
INSTALL = {"flash2": "flash-attn", "flash3": "flash-attn-3", "sage": "sageattention"}


@cache
def _installed(name: str) -> bool:
    return importlib.util.find_spec(PACKAGES[name]) is not None


FLASH_ATTN_2_AVAILABLE, FLASH_ATTN_3_AVAILABLE = _installed("flash2"), _installed("flash3")  # for upstream's scripts


def check_backend(name: str, device: torch.device | str, dtype: torch.dtype = torch.bfloat16) -> str:
    """Return `name` if it can run on `device` with operands of `dtype`. Else raise ValueError that names one that can.

    Call it once, before weights load: a named backend is never replaced silently.
    """
    if name not in BACKEND_NAMES:
        raise ValueError(f"unknown attention backend {name!r}; choose one of {', '.join(BACKEND_NAMES)}")
    if name in PACKAGES:
        if torch.device(device).type != "cuda":
            raise ValueError(f"attention backend {name!r} needs a CUDA device, not {device}; use 'auto' or 'sdpa'")
        if dtype not in HALF:
            raise ValueError(f"attention backend {name!r} works in half precision only; use --dtype bf16, or 'sdpa'")
        if not _installed(name):
            raise ValueError(f"attention backend {name!r} is not installed: pip install {INSTALL[name]}; or use 'sdpa'")
    return name


def resolve_backend(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Return the kernel that `name` means for such operands: itself, or for "auto" the best exact one that runs.

    A caller that asks once and passes the answer keeps the search out of its loop and out of compiled graphs.
    """
    if name != "auto":
        return name
    if device.type != "cuda" or dtype not in HALF or head_dim > 256:
        return "sdpa"
    return _probe(device.index or 0, dtype)


@cache
def _probe(device_index: int, dtype: torch.dtype) -> str:
    """Find the best exact kernel that really runs on this device: installed builds may lack its architecture."""
    device = torch.device("cuda", device_index)
    cards = torch.get_device_module(device)
    has_fast_cudnn = cards.is_available() and cards.get_device_capability(device)[0] in (9, 10)
    for name in ("flash3", *["sdpa_cudnn"] * has_fast_cudnn, "flash2"):
        if name in PACKAGES and not _installed(name):
            continue
        x = torch.zeros(1, 16, 1, 128, device=device, dtype=dtype)
        try:
            BACKENDS[name](x, x, x, None)
        except Exception as error:  # any failure of a foreign kernel means: not this one
            log.warning("attention: %s is installed but does not run on %s (%s); not used", name, device, error)
            continue
        return name
    return "sdpa"


@cache
def log_kernel(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Log, once, the kernel that runs: `name`, and of SDPA the one that it chooses for such operands."""
    if name.startswith("sdpa") and device.type in ("cpu", "cuda"):
        x = torch.zeros(1, 1, 128, head_dim, device=device, dtype=dtype)
        with sdpa_kernel(CUDNN_FIRST, set_priority=True) if name == "sdpa_cudnn" else nullcontext():
            name = f"sdpa, {SDPBackend(torch._fused_sdp_choice(x, x, x)).name.lower().replace('_', ' ')}"
    log.info("attention: %s on %s", name, device)


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_lens: Tensor | None = None,
    k_lens: Tensor | None = None,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    q_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    deterministic: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    version: int | None = None,
) -> Tensor:
    """Do as `attention`, under upstream's name and arguments, with the same values for every device and kernel.

    Operands that are not in half precision are computed in `dtype`; the result has the dtype of q. Queries from q_lens
    on are padding: their results have no meaning. A query sees `window_size` (left, right) keys beside its own, -1 for
    all, with `causal` none on the right; the last query is at the last key. `deterministic` and `version` change
    nothing: there is no backward pass, and the kernel is chosen as for the models. Raises ValueError for dropout.
    """
    if dropout_p:
        raise ValueError(f"dropout_p must be 0, got {dropout_p}: the kernels here are for inference")
    factor = 1.0 if softmax_scale is None else softmax_scale * q.shape[-1] ** 0.5  # `attention` has its own scale
    factor = factor if q_scale is None else factor * q_scale
    half, result = q.dtype if q.dtype in HALF else dtype, q.dtype
    q, k, v = (q if factor == 1 else q * factor).to(half), k.to(half), v.to(half)
    left, right = window_size[0], 0 if causal else window_size[1]
    lens = None if k_lens is None else [int(n) for n in k_lens]
    if left < 0 and right < 0:
        return attention(q, k, v, lens).to(result)
    seen = _window(q, k, q_lens, k_lens, left, right)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None]).transpose(1, 2).to(result)


def _window(q: Tensor, k: Tensor, q_lens: Tensor | None, k_lens: Tensor | None, left: int, right: int) -> Tensor:
    """Mask [B, Lq, Lk] or [1, Lq, Lk] of the keys that queries see; a side below 0 has no limit."""

    def lengths(x: Tensor, lens: Tensor | None) -> Tensor:
        return torch.as_tensor([x.shape[1]] if lens is None else lens, device=q.device)[:, None, None]

    keys, count = torch.arange(k.shape[1], device=q.device), lengths(k, k_lens)
    own = torch.arange(q.shape[1], device=q.device)[:, None] + count - lengths(q, q_lens)
    beyond = keys - own
    seen = keys < count
    if left >= 0:
        seen = seen & (beyond >= -left)
    return seen & (beyond <= right) if right >= 0 else seen
