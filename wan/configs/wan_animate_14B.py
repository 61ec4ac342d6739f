"""A driving performance and a character image to video, one 14B model."""

from wan.configs.shared_config import TaskConfig

animate_14B = TaskConfig(
    name="animate-14B",
    sizes=("720*1280", "1280*720"),
    prompt="视频中的人在做动作",
    vae_checkpoint="Wan2.1_VAE.pth",
    vae_stride=(4, 8, 8),
    z_dim=16,
    model_type="animate",
    in_dim=36,
    out_dim=16,
    dim=5120,
    ffn_dim=13824,
    num_heads=40,
    num_layers=40,
    frame_num=77,
    sample_fps=30,
    sample_shift=5.0,
    sample_steps=20,
    sample_guide_scale=1.0,
)
