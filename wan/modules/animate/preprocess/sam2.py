"""Segmenter of videos: SAM 2 of Transformers, with the weights of the released file `sam2_hiera_large.pt`.

Neither the `sam2` package nor the processors of Transformers are needed; the latter would need torchvision.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wan.checkpoint.loading import check_fits, empty, load_module
from wan.checkpoint.source import TensorSource, open_source
from wan.geometry import Size
from wan.program import install_command

# Hiera-Large as of SAM 2.0. The two options that are off came with 2.1.
BACKBONE = {
    **{
        "hidden_size": 144,
        "embed_dim_per_stage": [144, 288, 576, 1152],
        "num_attention_heads_per_stage": [2, 4, 8, 16],
    },
    **{"num_attention_heads": 2, "blocks_per_stage": [2, 6, 36, 4], "global_attention_blocks": [23, 33, 43]},
    **{"window_positional_embedding_background_size": [7, 7], "window_size_per_stage": [8, 4, 16, 8]},
}
CHANNELS = [1152, 576, 288, 144]  # of the neck
VERSION = {
    "enable_temporal_pos_encoding_for_object_pointers": False,
    "enable_occlusion_spatial_embedding": False,
}

POSITIONS = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
CORNERS = "sam_prompt_encoder.point_embeddings"  # four tensors of the file, rows of one of ours
RULES = (  # our names -> those of the file, applied in order
    (r"^shared_image_embedding\.positional_embedding$", POSITIONS),
    (r"^prompt_encoder\.shared_embedding\.positional_embedding$", POSITIONS),
    (r"^prompt_encoder\.point_embed\.", f"{CORNERS}.{{}}."),
    (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
    (r"^no_object_pointer$", "no_obj_ptr"),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"^prompt_encoder\.mask_embed\.conv(\d)\.", lambda m: f"prompt_encoder.mask_downscaling.{3 * int(m[1]) - 3}."),
    (
        r"^prompt_encoder\.mask_embed\.layer_norm(\d)\.",
        lambda m: f"prompt_encoder.mask_downscaling.{3 * int(m[1]) - 2}.",
    ),
    (r"^(mask_decoder|prompt_encoder)\.", r"sam_\1."),
    (r"\.mask_downsampler\.layers\.(\d)\.conv\.", lambda m: f".mask_downsampler.encoder.{3 * int(m[1])}."),
    (r"\.mask_downsampler\.layers\.(\d)\.layer_norm\.", lambda m: f".mask_downsampler.encoder.{3 * int(m[1]) + 1}."),
    (r"\.mask_downsampler\.final_conv\.", ".mask_downsampler.encoder.12."),
    (r"\.feature_projection\.", ".pix_feat_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"\.memory_fuser\.", ".fuser."),
    (r"\.scale$", ".gamma"),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
    (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
    (r"(obj_ptr_proj|_head|_mlps\.\d+)\.layers\.0\.", r"\1.layers.1."),
    (r"\.proj_in\.", ".layers.0."),
    (r"\.proj_out\.", ".layers.2."),
    (r"\.o_proj\.", ".out_proj."),
    (r"\.layer_norm", ".norm"),
)


def config_of(**changed: Any) -> Any:
    """Make the configuration of Hiera-Large; `changed` replaces its fields, for small models."""
    transformers = _transformers()
    backbone = transformers.Sam2HieraDetConfig(**BACKBONE | changed.pop("backbone", {}))
    vision = {"backbone_config": backbone, "backbone_channel_list": CHANNELS} | changed.pop("vision", {})
    return transformers.Sam2VideoConfig(vision_config=transformers.Sam2VisionConfig(**vision), **VERSION, **changed)


def model_of(config: Any) -> nn.Module:
    """Build the model, also on the meta device; what no file fills is computed."""
    model = _transformers().Sam2VideoModel(config)
    with torch.device("cpu"):
        twin = type(model.memory_attention)(config)
    stored = model.memory_attention.state_dict().keys()
    for name, buffer in twin.named_buffers():
        if name not in stored:
            owner, _, last = name.rpartition(".")
            model.memory_attention.get_submodule(owner).register_buffer(last, buffer, persistent=False)
    return model


def stored_names(name: str) -> list[str]:
    """List the names in the released file of the tensors that one of the model is made of, one below the other."""
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return [name.format(row) for row in range(4)] if "{}" in name else [name]


class Sam2Source(TensorSource):
    """Tensors of a released file under the names of the model. Those that it does not know keep their names."""

    def __init__(self, source: TensorSource, names: list[str]):
        self.description, self.source = source.description, source
        found = {name: stored_names(name) for name in names}
        used = {stored for parts in found.values() for stored in parts}
        here = set(source.names())
        self.places = {name: parts for name, parts in found.items() if here.issuperset(parts)}
        self.places |= {stored: [stored] for stored in source.names() if stored not in used}

    def names(self) -> list[str]:
        return list(self.places)

    def shape(self, name: str) -> tuple[int, ...]:
        first, *others = (self.source.shape(stored) for stored in self.places[name])
        return (sum(shape[0] for shape in (first, *others)), *first[1:]) if others else first

    def dtype(self, name: str) -> torch.dtype:
        return self.source.dtype(self.places[name][0])

    def get(self, name: str) -> Tensor:
        parts = [self.source.get(stored) for stored in self.places[name]]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def load_sam2(path: str | Path, device: torch.device | str = "cpu", config: Any = None) -> nn.Module:
    """Load a released file, strictly, in the precision of the device.

    Raises ValueError and FileNotFoundError naming the file.
    """
    config, dtype = config or config_of(), precision(device)
    source = open_sam2(path, config)
    return load_module(lambda: model_of(config), source, dtype=dtype, device=device).to(device, dtype)


def precision(device: torch.device | str) -> torch.dtype:
    """Choose bfloat16 on GPUs that compute with it, else float32."""
    has_bf16 = torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float32


def check_sam2(path: str | Path) -> None:
    """Check names and shapes of a released file without reading weights. Raises the errors of `load_sam2`."""
    config = config_of()
    check_fits(lambda: model_of(config), open_sam2(path, config))


def open_sam2(path: str | Path, config: Any) -> Sam2Source:
    return Sam2Source(open_source(path), list(empty(lambda: model_of(config)).state_dict()))


def session_of(model: nn.Module, frames: Any, size: Size) -> Any:
    """Begin to segment a chunk. frames: a sequence that gives each frame in the form of the model's input."""
    weight = next(model.parameters())
    width, height = size
    session = _transformers().Sam2VideoInferenceSession(None, height, width, weight.device, dtype=weight.dtype)
    session.processed_frames = frames
    return session


def released_state(model: nn.Module) -> dict[str, Any]:
    """Give the tensors of a model the names that the released file has, below its key `model`."""
    state = {}
    for name, tensor in model.state_dict().items():
        stored = stored_names(name)
        state |= dict(zip(stored, tensor.split(len(tensor) // len(stored)), strict=True))
    return {"model": state}


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"masks need the package transformers ({error}): {install_command('animate')}") from None
    return transformers
