"""Make checkpoints as others publish them, from ours with the recorded maps of names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

DATA = Path(__file__).parents[1] / "data" / "state_dict"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a released model."""
    content = json.loads((DATA / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in content.get("tensors", content).items()}


def core_map(part: str, blocks: int) -> dict[str, str]:
    """Map the released name of every tensor of a model with that many blocks to the foreign name."""
    table = json.loads((DATA / "diffusers_keymap_core.json").read_text())[part]
    per_block = {
        ours.format(i=i): theirs.format(i=i) for i in range(blocks) for ours, theirs in table["per_block"].items()
    }
    return {**table["top_level"], **per_block}


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    return {names[name]: tensor for name, tensor in state.items()}


def diffusers_config(released: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` that Diffusers writes for a released one."""
    return {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": "0.35.0.dev0",
        "added_kv_proj_dim": None,
        "attention_head_dim": released["dim"] // released["num_heads"],
        "cross_attn_norm": True,
        "eps": 1e-6,
        "ffn_dim": released["ffn_dim"],
        "freq_dim": 256,
        "image_dim": None,
        "in_channels": released["in_dim"],
        "num_attention_heads": released["num_heads"],
        "num_layers": released["num_layers"],
        "out_channels": released["out_dim"],
        "patch_size": [1, 2, 2],
        "pos_embed_seq_len": None,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024,
        "text_dim": released["text_dim"],
    }


def make_diffusers(folder: Path, **more: Any) -> None:
    """Turn a model folder into the `transformer/` of a Diffusers pipeline; `more` are further fields of its config."""
    released = json.loads((folder / "config.json").read_text())
    state = load_file(folder / WEIGHTS)
    save_file(renamed(state, core_map("dit", released["num_layers"])), folder / WEIGHTS, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(diffusers_config(released) | more))


def make_safetensors(pickled: Path, target: Path, names: dict[str, str] | None = None) -> None:
    """Replace a .pth by a safetensors file of another name; `names` may rename its tensors."""
    state = torch.load(pickled, weights_only=True)
    target.parent.mkdir(exist_ok=True, parents=True)
    save_file(renamed(state, names) if names else state, target, {"format": "pt"})
    pickled.unlink()


def write_header(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "F32", **metadata: str) -> None:
    """Write a safetensors file of the right size whose data is a hole, which takes no room on the disk."""
    size = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I8": 1}[dtype]
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        length = size * int(torch.Size(shape).numel())
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + length]}
        end += length
    text = json.dumps(header).encode()
    path.parent.mkdir(exist_ok=True, parents=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
