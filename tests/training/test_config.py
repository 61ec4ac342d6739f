import pytest

from wan.training.config import DataConfig, FlowConfig, LoopConfig, TrainConfig

TOML = """
checkpoint = "ckpt"
output = "out"
expert = "high_noise_model"
[data]
videos = "clips"
cache = "cache"
size = [832, 480]
[loop]
steps = 100
betas = [0.9, 0.95]
[flow]
t_min = 875
"""


def test_toml_becomes_a_checked_config(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    config = TrainConfig.from_toml(path)
    assert config.data.size == (832, 480) and config.loop.betas == (0.9, 0.95)
    assert (config.flow.t_min, config.flow.t_max) == (875, 1000)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: LoopConfig(steps=0), "steps must be at least 1, got 0"),
        (lambda: FlowConfig(channels=0), "channels must be at least 1, got 0"),
        (lambda: LoopConfig(steps=5, warmup_steps=5), "warmup_steps 5 must be below steps 5"),
        (lambda: LoopConfig(steps=5, precision="fp8"), "precision must be one of float32, bfloat16, got 'fp8'"),
        (lambda: FlowConfig(t_min=900, t_max=875), "875-1000"),
        (lambda: FlowConfig(sigma_distribution="cosine"), "uniform, logit_normal"),
        (lambda: FlowConfig(text_dropout=1.0), "text_dropout"),
        (lambda: DataConfig("a", "b", (64, 64), frame_num=16), "try 13 or 17"),
        (lambda: DataConfig("a", "b", (100, 64)), "multiples of 16"),
        (lambda: TrainConfig.from_dict({"stepz": 1}), "unknown name in the top level: stepz"),
        (lambda: TrainConfig.from_dict({"output": "o"}), "missing in the top level: checkpoint, data, loop"),
        (lambda: TrainConfig.from_dict({"loop": {"steps": 3, "lr": 1}}), r"unknown name in \[loop\]: lr"),
        (lambda: TrainConfig.from_dict({"loop": 3}), r"\[loop\] must be a table"),
        (
            lambda: TrainConfig("c", "o", DataConfig("a", "b", (64, 64)), LoopConfig(steps=4, preview_every=2)),
            "preview_prompts is empty",
        ),
    ],
)
def test_mistakes_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
