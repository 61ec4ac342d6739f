"""Text to video, two 14B experts."""

from wan.configs.shared_config import SIZES_14B, TaskConfig

t2v_A14B = TaskConfig(
    name="t2v-A14B",
    sizes=("720*1280", "1280*720", "480*832", "832*480"),
    prompt=(
        "Two cats in tiny boxing gloves circle each other under the lamps of a small ring, trading quick, playful jabs "
        "while the crowd behind them blurs into soft colour."
    ),
    model_type="t2v",
    in_dim=16,
    low_noise_checkpoint="low_noise_model",
    high_noise_checkpoint="high_noise_model",
    boundary=0.875,
    sample_shift=12.0,
    sample_steps=40,
    sample_guide_scale=(3.0, 4.0),
    **SIZES_14B,
)
