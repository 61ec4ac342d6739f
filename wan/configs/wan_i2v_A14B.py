"""Image to video, two 14B experts."""

from wan.configs.shared_config import SIZES_14B, TaskConfig

i2v_A14B = TaskConfig(
    name="i2v-A14B",
    sizes=("720*1280", "1280*720", "480*832", "832*480"),
    prompt=(
        "A white cat with sunglasses rests on a surfboard at the edge of the sea. Small waves roll in behind it, the "
        "breeze moves its fur, and it slowly turns its head towards the camera."
    ),
    needs=(("image", "last_image"),),
    model_type="i2v",
    in_dim=36,
    low_noise_checkpoint="low_noise_model",
    high_noise_checkpoint="high_noise_model",
    boundary=0.900,
    sample_shift=5.0,
    sample_steps=40,
    sample_guide_scale=(3.5, 3.5),
    **SIZES_14B,
)
