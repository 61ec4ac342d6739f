"""A driving performance and a character image to video, one 14B model."""

from wan.configs.shared_config import SIZES_14B, TaskConfig

animate_14B = TaskConfig(
    name="animate-14B",
    sizes=("720*1280", "1280*720"),
    prompt="视频中的人在做动作",
    model_type="animate",
    in_dim=36,
    has_example=False,
    needs=(("performance",),),
    lora_checkpoint="relighting_lora.ckpt",
    clip_checkpoint="models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    frame_num=77,
    sample_fps=30,
    sample_shift=5.0,
    sample_steps=20,
    sample_guide_scale=1.0,
    least_guidance=1.0,
    **SIZES_14B,
)
