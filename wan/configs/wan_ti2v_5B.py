"""Text, with or without an image, to video: one 5B model on the 16x16x4 VAE."""

from wan.configs.shared_config import TaskConfig
from wan.configs.wan_t2v_A14B import t2v_A14B

ti2v_5B = TaskConfig(
    name="ti2v-5B",
    sizes=("704*1280", "1280*704"),
    size="1280*704",
    prompt=t2v_A14B.prompt,
    vae_checkpoint="Wan2.2_VAE.pth",
    vae_stride=(4, 16, 16),
    z_dim=48,
    model_type="ti2v",
    in_dim=48,
    out_dim=48,
    dim=3072,
    ffn_dim=14336,
    num_heads=24,
    num_layers=30,
    frame_num=121,
    sample_fps=24,
    sample_shift=5.0,
    sample_steps=50,
    sample_guide_scale=5.0,
)
