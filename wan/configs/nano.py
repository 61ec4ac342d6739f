"""Presets of the embedded miniature family: the same tasks at toy size, small enough to ship with the code."""

from pathlib import Path
from typing import Any

from wan.configs.shared_config import Presets, TaskConfig
from wan.configs.wan_animate_14B import animate_14B
from wan.configs.wan_i2v_A14B import i2v_A14B
from wan.configs.wan_s2v_14B import s2v_14B
from wan.configs.wan_t2v_A14B import t2v_A14B
from wan.configs.wan_ti2v_5B import ti2v_5B

CHECKPOINTS = Path(__file__).resolve().parent.parent / "nano" / "checkpoints"

# Values of all miniatures. Text encoder and tokenizer are stored once, with text-to-video.
COMMON: dict[str, Any] = {
    "family": "nano",
    "prompt": "a red circle moves to the right on a navy background",
    "sample_neg_prompt": "",
    "frame_num": 17,
    "sample_fps": 8,
    "sample_steps": 20,
    "sample_shift": 3.0,
    "text_len": 64,
    "text_dim": 96,
    "dim": 160,
    "ffn_dim": 640,
    "num_heads": 4,
}
SHARED = "../t2v-A14B"
SHARED_TEXT: dict[str, Any] = {
    "t5_checkpoint": f"{SHARED}/{t2v_A14B.t5_checkpoint}",
    "t5_tokenizer": f"{SHARED}/{t2v_A14B.t5_tokenizer}",
}

NANO_CONFIGS = Presets(
    t2v_A14B.copy(sizes=("64*64",), size="64*64", sample_guide_scale=(3.0, 3.0), num_layers=5, **COMMON),
    i2v_A14B.copy(
        sizes=("64*64",),
        size="64*64",
        sample_guide_scale=(3.0, 3.0),
        vae_checkpoint=f"{SHARED}/{i2v_A14B.vae_checkpoint}",
        num_layers=4,
        **SHARED_TEXT,
        **COMMON,
    ),
    ti2v_5B.copy(sizes=("128*128",), size="128*128", sample_guide_scale=3.0, num_layers=4, **SHARED_TEXT, **COMMON),
    s2v_14B.copy(
        sizes=("64*64",),
        size="64*64",
        sample_guide_scale=2.0,
        num_layers=4,
        **SHARED_TEXT,
        **COMMON
        | {
            "prompt": "",
            "sample_steps": 10,
            "dim": 128,
            "ffn_dim": 480,
            "frame_num": s2v_14B.frame_num,
            "sample_fps": s2v_14B.sample_fps,
        },
    ),
    animate_14B.copy(
        sizes=("64*64",),
        size="64*64",
        sample_guide_scale=1.0,
        num_layers=5,
        **SHARED_TEXT,
        **COMMON | {"prompt": "a person moves", "frame_num": 33, "dim": 128, "ffn_dim": 576, "sample_steps": 10},
    ),
)


def is_embedded(config: TaskConfig, folder: Path) -> bool:
    """Tell whether a folder of embedded parts holds the model of a task; it may hold other parts alone."""
    return (folder / config.experts[-1] / "config.json").is_file()


def nano_checkpoint(task: str) -> Path:
    """Return the folder of the embedded checkpoint of a task; a partial checkout may lack it."""
    return CHECKPOINTS / task
