"""Transformers of a task, from their files to the sampling loop: loaded, then changed one step after the other."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch

from wan.checking import MODELS, expert_config, expert_lora
from wan.checkpoint.loading import load_module
from wan.checkpoint.lora import Lora
from wan.checkpoint.repacked import freshest, open_copy, place_of
from wan.configs import TaskConfig
from wan.distributed.replica import Shard
from wan.modules.attention import attention, log_kernel, resolve_backend
from wan.modules.layers import AdaptedLinear, FeedForward, Linear, fuses_gelu_tanh, replace_linears
from wan.modules.model import WanModel, WanSelfAttention
from wan.modules.packed import can_pack, pack_linears
from wan.modules.quantised import quantise_linears
from wan.runtime import CPU, Host, Offload, Runtime

log = logging.getLogger(__name__)


def load_expert(
    checkpoint_dir: Path,
    config: TaskConfig,
    name: str,
    runtime: Runtime,
    offload: Offload,
    shard: Shard | None = None,
    beside: Lora | None = None,
) -> WanModel:
    """Load one transformer of a task and make it ready to sample with.

    Its weights are on the CPU, from where `memory.Weights` moves them, or on the device if they stay there. `shard`
    spreads the empty model over processes. The LoRA of the config is merged, and another one is applied `beside` the
    weights.
    """
    stays = shard is not None or offload is Offload.NONE
    sizes = expert_config(checkpoint_dir, config, name)
    lora = expert_lora(checkpoint_dir, config, name)
    stays_stored = stored_types(runtime) is not None and lora is None
    dtype, part = None if stays_stored else runtime.dtype, Path(checkpoint_dir, name)
    # a LoRA is merged before values are rounded
    folder = freshest(part, runtime.quantize) if lora is None and runtime.dtype == torch.bfloat16 else part
    if is_quantised := runtime.quantize is not None and folder == place_of(part, runtime.quantize):
        model = load_quantised(folder, lambda: MODELS[config.model_type](sizes), runtime)
    else:
        device = runtime.device if stays and runtime.quantize is None else CPU
        model = MODELS[config.model_type].from_pretrained(
            folder, None, dtype, device, shard=shard, config=sizes, change=lora and lora.merge
        )
    model = adapt(model, beside)
    for step in (pack, choose_kernels, compile_blocks) if is_quantised else STEPS:
        model = step(model, runtime)
    return model.to(runtime.device) if stays and runtime.quantize else model


def load_quantised(place: Path, factory: Callable[[], WanModel], runtime: Runtime) -> WanModel:
    """Load the copy that `repack --dtype` wrote: what `convert` and `quantise` would make of the original."""
    rounds = runtime.dtype if runtime.convert_model_dtype else None
    return load_module(
        lambda: quantise(factory().to(runtime.dtype), runtime),
        open_copy(place),
        dtype=rounds,
        keep_float32=lambda name: rounds is not None and name.endswith(".scale"),
    )


def stored_types(runtime: Runtime) -> Callable[[str], torch.dtype] | None:
    """Return the types of parameters at work, by name, if those of loaded transformers are the types of their files.

    Then nothing is converted before it goes to the device, and the weights stay views of the mapped files.
    """
    stays_stored = runtime.host is Host.MAPPED or runtime.spreads_blocks
    if not stays_stored or runtime.offload is Offload.NONE or runtime.quantize:
        return None

    def at_work(name: str) -> torch.dtype:
        return torch.float32 if WanModel.keeps_float32(name) and not runtime.convert_model_dtype else runtime.dtype

    return at_work


def adapt(model: WanModel, lora: Lora | None) -> WanModel:
    """Apply a LoRA beside the weights of its layers."""
    layers = {module: name for name, module in model.named_modules() if lora is not None and name in lora.pairs}
    replace_linears(model, lambda m: AdaptedLinear(m, *lora.factors(layers[m])) if m in layers else None)
    return model


def convert(model: WanModel, runtime: Runtime) -> WanModel:
    """Round norms, modulation and time weights as well, with upstream's --convert_model_dtype."""
    return model.to(runtime.dtype) if runtime.convert_model_dtype and stored_types(runtime) is None else model


def quantise(model: WanModel, runtime: Runtime) -> WanModel:
    """Store the weights of the linear layers behind the trunk's steps in 8 bits, with --quantize."""
    if runtime.quantize is not None:
        for module in (module for step in model.trunk() for module in step.modules):
            quantise_linears(module, runtime.quantize)
    return model


def pack(model: WanModel, runtime: Runtime) -> WanModel:
    """Lay the weights behind the trunk's steps out for a CPU's matrix units, unless processes have parts of them."""
    if can_pack(runtime.device, runtime.dtype) and not runtime.parallel.dit_fsdp:
        for module in (module for step in model.trunk() for module in step.modules):
            pack_linears(module)
    return model


def choose_kernels(model: WanModel, runtime: Runtime) -> WanModel:
    """Let blocks and adapters attend with the kernel of the runtime, and products apply the GELU if it is by tanh."""
    operands = runtime.device, runtime.dtype, model.config.head_dim
    backend = resolve_backend(runtime.attention, *operands)
    log_kernel(backend, *operands)
    for module in model.modules():
        if isinstance(module, WanSelfAttention):
            module.attend = partial(attention, backend=backend)
        elif isinstance(module, FeedForward) and type(module[0]) is Linear:
            module.has_fused_gelu = fuses_gelu_tanh(runtime.device, runtime.dtype)
    return model


def compile_blocks(model: WanModel, runtime: Runtime) -> WanModel:
    """Let every block be compiled when it first runs, with --compile, where this machine can."""
    if runtime.compile and compiles(runtime.device):
        for block in model.blocks:
            block.compile()
    return model


def has_compiler(device: torch.device) -> bool:
    """Tell whether what torch compiles with seems to be here: a C compiler, and Triton for a GPU."""
    tools = os.environ.get("CC", "").split()[:1] or ["cc", "gcc", "clang"]  # CC may have options
    return any(map(shutil.which, tools)) and (device.type != "cuda" or find_spec("triton") is not None)


@cache
def compiles(device: torch.device) -> bool:
    """Compile a sum on a device, and warn when that fails: models then run as they are."""
    try:
        torch.compile(torch.add)(torch.ones(8, device=device), 1)
    except Exception as error:  # compilers, and what they start, have no common class of errors
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        log.warning("nothing can be compiled for %s here, and steps run slower; --compile false: %s", device, reason)
        return False
    return True


STEPS = (convert, quantise, pack, choose_kernels, compile_blocks)
