"""Presets of the embedded miniature family: the same tasks at toy size, small enough to ship with the code."""

from dataclasses import replace
from pathlib import Path

from wan.configs.wan_t2v_A14B import t2v_A14B

CHECKPOINTS = Path(__file__).resolve().parent.parent / "nano" / "checkpoints"

NANO_CONFIGS = {
    "t2v-A14B": replace(
        t2v_A14B,
        family="nano",
        sizes=("64*64",),
        size="64*64",
        prompt="a red circle moves to the right on a navy background",
        sample_neg_prompt="",
        frame_num=17,
        sample_fps=8,
        sample_steps=20,
        sample_shift=3.0,
        sample_guide_scale=(3.0, 3.0),
        text_len=64,
        text_dim=96,
        vae_dim=16,
        dim=160,
        ffn_dim=640,
        num_heads=4,
        num_layers=5,
    ),
}


def nano_checkpoint(task: str) -> Path:
    """Where the embedded checkpoint of a task lies (the folder may be absent in a partial checkout)."""
    return CHECKPOINTS / task
