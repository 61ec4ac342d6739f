"""The layouts in which the same weights are published, and the way from each to the released names.

Renaming is a short list of regular expressions applied in order, not a table of names: nothing is split, fused or
transposed between these layouts (compared name by name with the published key maps in the tests).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]
Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]

COMFYUI_PREFIX = "model.diffusion_model."


@dataclass(frozen=True)
class Layout:
    """A family of names. `marks`: patterns of which every one must match some name; `rules`: to the released names.

    `duplicates` are names whose tensors repeat others and may be left out.
    """

    title: str
    marks: tuple[str, ...]
    rules: Rules
    duplicates: frozenset[str] = frozenset()


def _stage(match: re.Match[str]) -> str:
    """Diffusers groups the decoder: three residual blocks and an upsampler per stage; released names count through."""
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
    """Released name -> name in the file, and the title of the layout (None when the names are the released ones).

    Names that no rule knows stay as they are, so that a strict comparison still finds them. Raises ValueError when two
    names of the file mean the same tensor.
    """
    names = list(names)
    title = None
    if names and all(name.startswith(COMFYUI_PREFIX) for name in names):
        stripped = {name: name.removeprefix(COMFYUI_PREFIX) for name in names}
        title = f"the ComfyUI prefix {COMFYUI_PREFIX}"
    else:
        stripped = {name: name for name in names}
    layout = next((known for known in LAYOUTS if _matches(known, stripped.values())), None)
    if layout is None:
        return {short: name for name, short in stripped.items()}, title
    renamed: dict[str, str] = {}
    for name, short in sorted(stripped.items(), key=lambda item: item[1] in layout.duplicates):
        target = _rename(short, layout.rules)
        if short in layout.duplicates and (target in renamed or target == short):
            continue
        if target in renamed:
            raise ValueError(f"two tensors of the file are both {target}: {renamed[target]} and {name}")
        renamed[target] = name
    return renamed, layout.title


def _matches(layout: Layout, names: Collection[str]) -> bool:
    return all(any(re.search(mark, name) for name in names) for mark in layout.marks)


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# ---- what a file is, when it does not fit ----

Test = Callable[[Shapes], bool]


def _has(*patterns: str) -> Test:
    return lambda shapes: all(any(re.search(pattern, name) for name in shapes) for pattern in patterns)


def _transformer(dim: int, in_dim: int) -> Test:
    def test(shapes: Shapes) -> bool:
        return shapes.get("patch_embedding.weight", ())[:2] == (dim, in_dim) and "head.modulation" in shapes

    return test


# What released names and shapes say a file is. Special families first: they contain the plain ones.
CONTENTS: tuple[tuple[str, Test], ...] = (
    (
        "fp8- or int8-quantised weights, which this version does not read; use the bf16, fp16 or fp32 file",
        _has(r"(^|\.)scaled_fp8$|\.scale_weight$|\.weight_scale(_2)?$|\.comfy_quant$"),
    ),
    ("a LoRA, to be applied to a model, not a model", _has(r"\.lora_(A|B|down|up)\b")),
    ("VAE 2.2 (Wan2.2_VAE.pth, of TI2V-5B)", _has(r"^decoder\.upsamples\.0\.upsamples\.0\.")),
    ("VAE 2.1 (Wan2.1_VAE.pth)", _has(r"^decoder\.middle\.0\.residual\.0\.gamma$")),
    ("the S2V transformer", _has(r"^casual_audio_encoder\.")),
    ("the Animate transformer", _has(r"^face_adapter\.|^motion_encoder\.")),
    ("a VACE, Fun or camera-control transformer", _has(r"^vace_patch_embedding\.|^control_adapter\.|^ref_conv\.")),
    ("the Wan2.1 image-to-video transformer (it has an image encoder branch)", _has(r"^img_emb\.")),
    ("a T2V-A14B expert (or Wan2.1 T2V-14B)", _transformer(5120, 16)),
    ("an I2V-A14B expert", _transformer(5120, 36)),
    ("the TI2V-5B transformer", _transformer(3072, 48)),
    ("the Wan2.1 T2V-1.3B transformer", _transformer(1536, 16)),
    ("a Wan transformer of another size", _has(r"^head\.modulation$", r"^patch_embedding\.weight$")),
    ("the umT5 text encoder", _has(r"^token_embedding\.weight$", r"^blocks\.0\.pos_embedding\.")),
    ("the open-CLIP image encoder", _has(r"^visual\.transformer\.")),
)


def describe_contents(shapes: Shapes) -> str | None:
    """What tensors under released names are, in words; None when nothing known fits."""
    return next((title for title, fits in CONTENTS if fits(shapes)), None)
