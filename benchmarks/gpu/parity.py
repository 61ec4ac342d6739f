"""Parity of transformers, text encoder and autoencoders with the recorded reference, on a device and in two types."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.gpu.runner import ROOT, Setting
from tests.parity import core, numbered, read_case, under, vae
from wan.modules.model import WanModel
from wan.modules.t5 import T5Config, T5Encoder

GOLDEN = ROOT / "tests" / "data" / "golden"
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 5e-2}  # largest error, as a share of the norm of what was recorded
VAE_LIMIT = 1e-3


def parity(dtype: torch.dtype) -> Callable[[Setting], list[str]]:
    """Make the part that compares in a type; the autoencoders are compared in float32 alone."""

    def run(setting: Setting) -> list[str]:
        torch.set_grad_enabled(False)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        lines = [
            checked("transformer", errors(GOLDEN / "core", "dit_*", transformer, setting.device, dtype), LIMITS[dtype]),
            checked("text encoder", errors(GOLDEN / "core", "t5_[ab]", text, setting.device, dtype), LIMITS[dtype]),
        ]
        if dtype == torch.float32:
            for tf32 in (False, True):
                torch.backends.cudnn.allow_tf32 = tf32
                found = errors(GOLDEN / "vae", "*_wrapper", autoencoder, setting.device, dtype)
                name = f"autoencoders{', convolutions with TF32' * tf32}"
                lines.append(checked(name, found, 30 * VAE_LIMIT if tf32 else VAE_LIMIT))
        return lines

    return run


def errors(
    folder: Path,
    pattern: str,
    pairs: Callable[[dict, dict[str, Tensor], torch.device, torch.dtype], Iterable[tuple[Tensor, Tensor]]],
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, float]:
    """Compute the largest relative error of each recording."""
    found = {}
    for file in sorted(folder.glob(f"{pattern}.safetensors")):
        case, tensors = read_case(file), load_file(file)
        found[file.stem] = max(error(*pair) for pair in pairs(case, tensors, device, dtype))
    assert found, f"no recordings {pattern} in {folder}"
    return found


def error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} in place of {tuple(expected.shape)}"
    expected = expected.to(actual.device, torch.float64)
    return ((actual.double() - expected).norm() / expected.norm()).item()


def checked(name: str, found: dict[str, float], limit: float) -> str:
    """Raise AssertionError where an error is beyond the limit, or no number."""
    wrong = {file: f"{value:.1e}" for file, value in found.items() if not value <= limit}
    assert not wrong, f"{name}: relative errors above {limit:.0e}: {wrong}"
    return f"{name}: {len(found)} recordings, largest relative error {max(found.values()):.1e}"


def converted(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    for name, weight in module.named_parameters():
        kept = isinstance(module, WanModel) and module.keeps_float32(name)
        weight.data = weight.data.to(device, torch.float32 if kept else dtype)
    return module.eval()


def transformer(
    case: dict, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> Iterable[tuple[Tensor, Tensor]]:
    model = converted(core.load_model(case, tensors), device, dtype)
    x, y, context = ([part.to(device) for part in numbered(tensors, f"in/{name}")] for name in ("x", "y", "context"))
    results = model(x, tensors["in/t"].to(device), context, case["seq_len"], y or None)
    return zip(results, numbered(tensors, "out/x"), strict=True)


def text(
    case: dict, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> Iterable[tuple[Tensor, Tensor]]:
    model = T5Encoder(T5Config(**case["config"]))
    model.load_state_dict(under(tensors, "weights/"))
    states = converted(model, device, dtype)(tensors["in/ids"].to(device), tensors["in/mask"].to(device))
    return [(states[i, :length], tensors[f"out/context.{i}"]) for i, length in enumerate(case["lengths"])]


def autoencoder(
    case: dict, tensors: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> Iterable[tuple[Tensor, Tensor]]:
    coder = vae.WRAPPERS[case["vae"]](model=vae.load_model(case, tensors), device=device, dtype=dtype)
    for run in case["runs"]:
        given = [tensors[name].to(device) for name in run["inputs"]]
        results = getattr(coder, run["op"].removesuffix("_list"))(given)
        yield from zip(results, (tensors[name] for name in run["outputs"]), strict=True)
