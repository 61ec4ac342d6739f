"""Random Qwen2.5 and Qwen2.5-VL models in the layout of their releases, small enough to be made and run in a test."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

MARKS = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_qwen(folder: Path, is_vl: bool = False) -> Path:
    """Write a model whose answers are random letters, by the seed."""
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=MARKS[1], pad_token=MARKS[1], additional_special_tokens=MARKS
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    ids = dict(zip(MARKS, fast.convert_tokens_to_ids(MARKS), strict=True))
    size = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": len(fast),
        "eos_token_id": ids["<|im_end|>"],
        "bos_token_id": None,
    }
    torch.manual_seed(0)
    if is_vl:
        model = _vision_model(size, ids)
        settings = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**size))
    end = size["eos_token_id"]
    kept = {end, *map(letters.index, ascii_lowercase)}
    hidden = [token for token in range(len(fast)) if token not in kept]
    how = {"do_sample": True, "eos_token_id": end, "pad_token_id": end, "min_new_tokens": 8}
    model.generation_config = GenerationConfig(suppress_tokens=hidden, **how)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5)  # else all letters are equally likely, whatever is asked
    model.save_pretrained(folder)
    return folder


def _vision_model(size: dict, ids: dict[str, int]):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    vision = {"hidden_size": 32, "out_hidden_size": 32, "depth": 1, "num_heads": 2, "intermediate_size": 32}
    tokens = {name: ids[f"<|{mark}|>"] for name, mark in (
        ("image_token_id", "image_pad"),
        ("video_token_id", "video_pad"),
        ("vision_start_token_id", "vision_start"),
        ("vision_end_token_id", "vision_end"),
    )}  # fmt: skip
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=size | {"rope_parameters": rope}, vision_config=vision, **tokens)
    )
