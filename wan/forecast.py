"""The forecast: how much memory a run will take, from file headers and shapes, before any weight is read."""

import math
from pathlib import Path

from wan import geometry, memory
from wan.checking import expert_config
from wan.checkpoint.layout import part, stored_bytes
from wan.checkpoint.source import open_source
from wan.configs import TaskConfig
from wan.request import Request
from wan.runtime import Offload, Runtime


def expected_bytes(config: TaskConfig, checkpoint: Path, request: Request, runtime: Runtime) -> int:
    """Peak memory to expect, from file headers and shapes: of the device, or on a CPU of the whole process."""
    parallel, experts = runtime.parallel, config.experts
    shapes = open_source(checkpoint / experts[0]).shapes().values()
    expert_bytes = sum(map(math.prod, shapes)) * runtime.dtype.itemsize
    text, vae = (part(checkpoint, name) for name in (config.t5_checkpoint, config.vae_checkpoint))
    text_bytes = stored_bytes(text) if runtime.t5_device == runtime.device else 0
    vae_bytes = stored_bytes(vae)
    expert_bytes //= parallel.replica_size if parallel.dit_fsdp else 1
    text_bytes //= parallel.replica_size if parallel.t5_fsdp else 1

    model = expert_config(checkpoint, config, experts[0])
    size = request.framing.used
    latent = geometry.latent_shape(size, request.frame_num, config.vae_stride, config.z_dim)
    tokens = math.ceil(geometry.token_count(latent, config.patch_size) / parallel.ulysses_size)
    denoise = memory.denoise_bytes(0, tokens, model.dim, model.ffn_dim, runtime.dtype)
    width, height = memory.decoded_at_once(size, config.vae_stride, runtime.vae_tile)
    rows = height if runtime.vae_tile else math.ceil(height / parallel.replica_size)
    decode = memory.decode_bytes(0, width, rows, config.vae_dim)
    if runtime.offload is Offload.NONE:
        resident = text_bytes + len(experts) * expert_bytes + vae_bytes + max(denoise, decode)
    else:
        resident = max(text_bytes, expert_bytes + denoise, vae_bytes + decode)
    program = (memory.peak_memory(runtime.device) or 0) if runtime.device.type == "cpu" else 0
    return resident + program
