"""Text to video, two 14B experts."""

from wan.configs.shared_config import TaskConfig

t2v_A14B = TaskConfig(
    name="t2v-A14B",
    sizes=("720*1280", "1280*720", "480*832", "832*480"),
    prompt=(
        "Two cats in tiny boxing gloves circle each other under the lamps of a small ring, trading quick, playful jabs "
        "while the crowd behind them blurs into soft colour."
    ),
    vae_checkpoint="Wan2.1_VAE.pth",
    vae_stride=(4, 8, 8),
    z_dim=16,
    model_type="t2v",
    in_dim=16,
    out_dim=16,
    dim=5120,
    ffn_dim=13824,
    num_heads=40,
    num_layers=40,
    low_noise_checkpoint="low_noise_model",
    high_noise_checkpoint="high_noise_model",
    boundary=0.875,
    sample_shift=12.0,
    sample_steps=40,
    sample_guide_scale=(3.0, 4.0),
)
