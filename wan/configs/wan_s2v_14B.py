"""Speech and an image to video, one 14B model."""

# ruff: noqa: RUF001 - the full-width commas are data
from wan.configs.shared_config import KNOWN_SIZES, SIZES_14B, TaskConfig
from wan.configs.wan_i2v_A14B import i2v_A14B

S2V_NEGATIVE_PROMPT = (
    "画面模糊，最差质量，画面模糊，细节模糊不清，情绪激动剧烈，手快速抖动，字幕，丑陋的，残缺的，多余的手指，画得不好的手部，"
    "画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)

s2v_14B = TaskConfig(
    name="s2v-14B",
    sizes=KNOWN_SIZES,
    prompt=i2v_A14B.prompt,
    sample_neg_prompt=S2V_NEGATIVE_PROMPT,
    needs=(("image",), ("audio", "enable_tts")),
    frame_num=80,
    frame_rest=0,
    longest_clip=120,
    motion_frames=73,
    speech_checkpoint="wav2vec2-large-xlsr-53-english",
    model_type="s2v",
    in_dim=16,
    sample_shift=3.0,
    sample_steps=40,
    sample_guide_scale=4.5,
    least_guidance=1.0,
    **SIZES_14B,
)
