"""Layouts in which the same weights are published, and rules that rename each to the released names.

The rules of a layout are a few regular expressions, applied in order. No tensor is split, fused or transposed. The
tests compare the result name by name with the published key maps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from wan.files import shown

Shapes = Mapping[str, tuple[int, ...]]
Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

COMFYUI_PREFIX = "model.diffusion_model."


@dataclass(frozen=True)
class Layout:
    """Layout of a file: each of `marks` matches some name in it, and `rules` rename to the released names.

    `duplicates` are names whose tensors repeat others, or are not needed, and may be missing.
    """

    title: str
    marks: tuple[str, ...]
    rules: Rules
    duplicates: frozenset[str] = frozenset()


def _stage(match: re.Match[str]) -> str:
    """Number a part of the decoder: Diffusers counts 3 blocks and an upsampler per stage, released names count on."""
    stage, block = int(match[1]), match[2]
    return f"decoder.upsamples.{4 * stage + (3 if block is None else int(block))}."


VAE_RULES: Rules = (
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
)

LAYOUTS = (
    Layout(
        "the Diffusers layout of the diffusion transformer",
        (r"^condition_embedder\.time_embedder\.", r"^blocks\.0\.attn1\.to_q\."),
        (
            (r"^condition_embedder\.(text|time)_embedder\.linear_1\.", r"\1_embedding.0."),
            (r"^condition_embedder\.(text|time)_embedder\.linear_2\.", r"\1_embedding.2."),
            (r"^condition_embedder\.time_proj\.", "time_projection.1."),
            (r"^scale_shift_table$", "head.modulation"),
            (r"^proj_out\.", "head.head."),
            (r"\.scale_shift_table$", ".modulation"),
            (r"\.attn1\.", ".self_attn."),
            (r"\.attn2\.", ".cross_attn."),
            (r"\.to_([qkv])\.", r".\1."),
            (r"\.to_out\.0\.", ".o."),
            (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
            (r"\.ffn\.net\.2\.", ".ffn.2."),
            (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),  # swapped on purpose: Diffusers numbers norms in order of use
        ),
    ),
    Layout(
        "the Transformers layout of the umT5 encoder",
        (r"^encoder\.block\.0\.layer\.0\.SelfAttention\.q\.",),
        (
            (r"^(shared|encoder\.embed_tokens)\.", "token_embedding."),
            (r"^encoder\.final_layer_norm\.", "norm."),
            (r"^encoder\.block\.", "blocks."),
            (r"\.layer\.0\.SelfAttention\.relative_attention_bias\.", ".pos_embedding.embedding."),
            (r"\.layer\.0\.SelfAttention\.", ".attn."),
            (r"\.layer\.0\.layer_norm\.", ".norm1."),
            (r"\.layer\.1\.layer_norm\.", ".norm2."),
            (r"\.layer\.1\.DenseReluDense\.wi_0\.", ".ffn.gate.0."),
            (r"\.layer\.1\.DenseReluDense\.wi_1\.", ".ffn.fc1."),
            (r"\.layer\.1\.DenseReluDense\.wo\.", ".ffn.fc2."),
        ),
        # the tied embedding, and the tokenizer that ComfyUI's files carry as bytes
        duplicates=frozenset({"encoder.embed_tokens.weight", "spiece_model"}),
    ),
    Layout(
        "the Transformers layout of a wav2vec2 speech encoder",
        (r"^wav2vec2\.encoder\.pos_conv_embed\.",),
        (
            (r"\.pos_conv_embed\.conv\.weight_g$", ".pos_conv_embed.conv.parametrizations.weight.original0"),
            (r"\.pos_conv_embed\.conv\.weight_v$", ".pos_conv_embed.conv.parametrizations.weight.original1"),
        ),
        # for training, and for writing down what is said
        duplicates=frozenset({"wav2vec2.masked_spec_embed", "lm_head.weight", "lm_head.bias"}),
    ),
    Layout(
        "the Diffusers layout of VAE 2.1",
        (r"^encoder\.down_blocks\.0\.conv1\.", r"^decoder\.mid_block\.resnets\.0\."),
        (
            *VAE_RULES,
            (r"^encoder\.down_blocks\.", "encoder.downsamples."),
            (r"^decoder\.up_blocks\.(\d+)\.(?:resnets\.(\d+)|upsamplers\.0)\.", _stage),
        ),
    ),
    Layout(
        "the Diffusers layout of VAE 2.2",
        (r"^encoder\.down_blocks\.0\.resnets\.0\.", r"^decoder\.mid_block\.resnets\.0\."),
        (
            *VAE_RULES,
            (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.downsamples.\1.downsamples."),
            (r"^encoder\.down_blocks\.(\d+)\.downsampler\.", r"encoder.downsamples.\1.downsamples.2."),
            (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.upsamples.\1.upsamples."),
            (r"^decoder\.up_blocks\.(\d+)\.upsampler\.", r"decoder.upsamples.\1.upsamples.3."),
        ),
    ),
)


def released_names(names: Iterable[str]) -> tuple[dict[str, str], str | None]:
    """Map released names to names in the file; also return the layout's title (None when the names are released ones).

    Names that no rule knows stay as they are, so that a strict comparison finds them. Raises ValueError when two
    names of the file mean the same tensor.
    """
    stripped = {name: name for name in names}
    is_prefixed = bool(stripped) and all(name.startswith(COMFYUI_PREFIX) for name in stripped)
    if is_prefixed:
        stripped = {name: name.removeprefix(COMFYUI_PREFIX) for name in stripped}
    layout = next((known for known in LAYOUTS if _has(*known.marks)(stripped.values())), None)
    if layout is None:
        title = f"the ComfyUI prefix {COMFYUI_PREFIX}" if is_prefixed else None
        return {short: name for name, short in stripped.items()}, title
    renamed: dict[str, str] = {}
    for name, short in sorted(stripped.items(), key=lambda item: item[1] in layout.duplicates):
        target = _rename(short, layout.rules)
        if short in layout.duplicates and (target in renamed or target == short):
            continue
        if target in renamed:
            raise ValueError(
                f"two tensors of the file are both {shown(target)}: {shown(renamed[target])} and {shown(name)}"
            )
        renamed[target] = name
    return renamed, layout.title


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# ---- contents ----

Test = Callable[[Shapes], bool]


@dataclass(frozen=True)
class Content:
    """Kind of weights. `task`: the task whose transformer they are; `is_read`: this version can read them."""

    title: str
    fits: Test
    task: str | None = None
    is_read: bool = True


def _has(*patterns: str) -> Callable[[Collection[str]], bool]:
    """Make a test that each pattern matches some name."""
    return lambda names: all(any(re.search(pattern, name) for name in names) for pattern in patterns)


def _transformer(in_dim: int, out_dim: int, dim: int | None = None) -> Test:
    def test(shapes: Shapes) -> bool:
        channels = shapes.get("patch_embedding.weight", ())[:2]
        rows = shapes.get("head.head.weight", ())[:1]
        return channels[1:] == (in_dim,) and dim in (None, channels[0]) and rows == (4 * out_dim,)

    return test


LORA = "a LoRA, to be applied to a model, not a model"
CURE = "use the bf16, fp16 or fp32 file"


def _unread(title: str, *patterns: str) -> Content:
    return Content(title, _has(*patterns), is_read=False)


# Tests see released names where a layout is known. Special families come first: they contain the names of plain ones.
CONTENTS: list[Content] = [
    _unread(
        f"fp8-, fp4- or int8-quantised weights; {CURE}",
        r"(^|\.)scaled_fp8$|\.(scale_weight|weight_scale(_2)?|weight_global_scale|comfy_quant)$"
        r"|\.(absmax|quant_map|SCB|qweight|wscales|_scale)$|\.quant_state\.",
    ),
    _unread(
        LORA,
        r"[._]lora[._]?(A|B|down|up|mid|linear_layer)\b|\.(hada|lokr)_w\d|\.diff(_b|_m)?$|\.dora_scale$|^lora_unet_",
    ),
    _unread(
        "an all-in-one file of ComfyUI: model, text encoder and VAE together",
        r"^(model\.diffusion_model|diffusion_model)\.",
        r"^(first_stage_model|vae|text_encoders)\.",
    ),
    Content("VAE 2.2 (Wan2.2_VAE.pth, of TI2V-5B)", _has(r"^decoder\.upsamples\.0\.upsamples\.0\.")),
    Content("VAE 2.1 (Wan2.1_VAE.pth)", _has(r"^decoder\.middle\.0\.residual\.0\.gamma$")),
    Content("the S2V transformer", _has(r"^casual_audio_encoder\."), task="s2v-14B"),
    Content("the Animate transformer", _has(r"^face_adapter\.|^motion_encoder\."), task="animate-14B"),
    _unread(
        "a VACE, Fun or camera-control transformer",
        r"^vace_(patch_embedding|blocks)\.|^control_adapter\.|^ref_conv\.",
    ),
    _unread(
        "the Wan2.1 image-to-video transformer (it has an image encoder branch)",
        r"^img_emb\.|^condition_embedder\.image_embedder\.",
    ),
    Content("a T2V-A14B expert (or Wan2.1 T2V-14B)", _transformer(16, 16, 5120), task="t2v-A14B"),
    Content("an I2V-A14B expert", _transformer(36, 16, 5120), task="i2v-A14B"),
    Content("the TI2V-5B transformer", _transformer(48, 48, 3072), task="ti2v-5B"),
    Content("the Wan2.1 T2V-1.3B transformer", _transformer(16, 16, 1536)),
    Content("a T2V transformer of another size", _transformer(16, 16), task="t2v-A14B"),
    Content("an I2V transformer of another size", _transformer(36, 16), task="i2v-A14B"),
    Content("a TI2V transformer of another size", _transformer(48, 48), task="ti2v-5B"),
    Content("a Wan transformer of another kind", _has(r"^head\.modulation$", r"^patch_embedding\.weight$")),
    Content("the umT5 text encoder", _has(r"^token_embedding\.weight$", r"^blocks\.0\.pos_embedding\.")),
    Content("a T5 with its decoder, of which only the encoder is needed", _has(r"^decoder\.block\.0\.")),
    Content("the wav2vec2 speech encoder", _has(r"^wav2vec2\.encoder\.pos_conv_embed\.")),
    Content("the open-CLIP image encoder", _has(r"^visual\.transformer\.")),
]
PREFIX_MARKS = ("patch_embedding.weight", "token_embedding.weight", "encoder.conv1.weight", "shared.weight")
QUANTISED = ("float8", "float4", "int8", "uint8", "int4", "uint4", "bits")  # first letters of their types' names


def what_is(shapes: Shapes) -> Content | None:
    """Return the kind of the tensors of a file, in any layout; None when no known kind fits. Raises ValueError."""
    names, _ = released_names(shapes)
    released = {name: shapes[stored] for name, stored in names.items()}
    return next((content for content in CONTENTS if content.fits(released)), None)


def describe_contents(shapes: Shapes) -> str | None:
    """Return the title of `what_is`, or None."""
    content = what_is(shapes)
    return content and content.title


def unread_form(shapes: Shapes, types: Mapping[str, str]) -> str | None:
    """Describe a file that this version cannot read, by shapes and torch's types of its tensors; None for others."""
    content = what_is(shapes)
    if content is not None and not content.is_read:
        return content.title
    if small := sorted({kind for name, kind in types.items() if kind.startswith(QUANTISED) and len(shapes[name]) > 1}):
        return f"weights quantised to {', '.join(small)}; {CURE}"
    for mark in PREFIX_MARKS if content is None else ():
        for name in shapes:
            prefix = name.removesuffix(mark)
            if name.endswith(f".{mark}") and prefix != COMFYUI_PREFIX and all(n.startswith(prefix) for n in shapes):
                return f"tensors whose names all begin with {prefix}"
    return None


# First bytes of files that this program does not read as weights.
MAGICS = {
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x1f\x8b": "a gzip archive; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
}


def foreign_file(start: bytes) -> str | None:
    """Describe a file whose first bytes `start` show that it holds no weights that are read; None for others."""
    return next((title for magic, title in MAGICS.items() if start.startswith(magic)), None)
