"""Derive the fields of a released `config.json` from a config of Diffusers, or from the shapes of the tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wan.checkpoint.formats import Shapes, describe_contents
from wan.files import shown

RENAMED = {"num_attention_heads": "num_heads", "in_channels": "in_dim", "out_channels": "out_dim"}
KEPT = ("ffn_dim", "num_layers", "text_dim", "freq_dim", "cross_attn_norm", "eps", "patch_size", "family")
QK_NORMS = ("rms_norm_across_heads", True, False, None)  # False and None: no norms
# Fields of parts that no supported model has: there they are null or absent.
UNSUPPORTED = ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len", "vace_layers", "motion_encoder_channel_sizes")

MODEL_TYPES = {(16, 16): "t2v", (36, 16): "i2v", (48, 48): "ti2v"}  # by channels in and out
HEAD_DIM = 128  # of every published model
PUBLISHED = {(5120, 13824, 40), (3072, 14336, 30), (1536, 8960, 30)}  # dim, ffn_dim, num_layers
TEXT_LEN = 512  # of every published model; neither a config of Diffusers nor a shape tells it


def released_fields(values: Mapping[str, Any], text_len: int = TEXT_LEN) -> dict[str, Any]:
    """Rename the fields of a Diffusers transformer to the released names; other fields are returned unchanged.

    Raises ValueError when the transformer has parts that this version does not know.
    """
    if "num_attention_heads" not in values or "attention_head_dim" not in values:
        return dict(values)
    parts = [name for name in UNSUPPORTED if values.get(name) is not None]
    if parts:
        which = ", ".join(f"{name} {values[name]!r}" for name in parts)
        raise ValueError(
            f"{values.get('_class_name', 'the model')} with {shown(which)} is another model: Wan2.1 image-to-video, "
            "Animate or VACE, which this version does not read"
        )
    if (norm := values.get("qk_norm", "rms_norm_across_heads")) not in QK_NORMS:
        raise ValueError(f"qk_norm {norm!r} is not known; the published models have rms_norm_across_heads")
    fields = {ours: values[theirs] for theirs, ours in RENAMED.items() if theirs in values}
    fields |= {name: values[name] for name in KEPT if name in values} | {"qk_norm": bool(norm)}
    heads, size = values["num_attention_heads"], values["attention_head_dim"]
    if not (isinstance(heads, int) and isinstance(size, int)):
        raise ValueError(f"num_attention_heads {heads!r} and attention_head_dim {size!r} must be whole numbers")
    kind = model_type_of(fields)
    return {"text_len": text_len} | fields | {"dim": heads * size} | ({"model_type": kind} if kind else {})


def model_type_of(fields: Mapping[str, Any]) -> str | None:
    """Return the field `model_type`; without it, the type that has these numbers of channels."""
    channels = (fields.get("in_dim"), fields.get("out_dim"))
    kinds = (kind for known, kind in MODEL_TYPES.items() if known == channels)
    return fields.get("model_type") or next(kinds, None)


def inferred_fields(shapes: Shapes) -> dict[str, Any]:
    """Infer all fields from the shapes of tensors under released names, for published sizes.

    Shapes do not tell the number of heads. Raises ValueError for another size, and for what is no transformer.
    """
    needed = ("patch_embedding.weight", "head.head.weight", "blocks.0.ffn.0.weight", "text_embedding.0.weight")
    missing = [name for name in (*needed, "time_embedding.0.weight") if len(shapes.get(name, ())) < 2]
    if missing:
        contents = describe_contents(shapes) or "nothing that this version knows"
        raise ValueError(f"the tensors are not those of a Wan transformer, they look like {contents}")
    dim, in_dim, *patch_size = shapes["patch_embedding.weight"]
    ffn_dim = shapes["blocks.0.ffn.0.weight"][0]
    num_layers = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    out_dim = shapes["head.head.weight"][0] // max(1, math.prod(patch_size))
    if (dim, ffn_dim, num_layers) not in PUBLISHED or (in_dim, out_dim) not in MODEL_TYPES:
        raise ValueError(
            f"no published model has dim {dim}, ffn_dim {ffn_dim}, {num_layers} layers, {in_dim} channels in and "
            f"{out_dim} out, and shapes do not tell the number of attention heads; its config.json is needed"
        )
    return {
        "model_type": MODEL_TYPES[in_dim, out_dim],
        "dim": dim,
        "ffn_dim": ffn_dim,
        "num_heads": dim // HEAD_DIM,
        "num_layers": num_layers,
        "in_dim": in_dim,
        "out_dim": out_dim,
        "text_len": TEXT_LEN,
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "eps": 1e-6,
        "text_dim": shapes["text_embedding.0.weight"][1],
        "patch_size": patch_size,
        "qk_norm": "blocks.0.self_attn.norm_q.weight" in shapes,
        "cross_attn_norm": "blocks.0.norm3.weight" in shapes,
    }
