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


def changed(old, new):
    return TOML.replace(old, new) if old else new + TOML


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 100", 'steps = "100"', "steps must be a whole number, got '100'"),
        ("steps = 100", "steps = 1.5", "steps must be a whole number, got 1.5"),
        ("steps = 100", "steps = true", "steps must be a whole number, got True"),
        ("steps = 100", "steps = 100\ncompile = 1", "compile must be true or false, got 1"),
        ("steps = 100", "steps = 100\nlearning_rate = nan", "learning_rate must be a finite number, got nan"),
        ("betas = [0.9, 0.95]", "betas = 0.9", "betas must be a list, got 0.9"),
        ("betas = [0.9, 0.95]", "betas = [0.9]", r"betas must have 2 values, got \[0.9\]"),
        ("size = [832, 480]", 'size = "832*480"', "size must be a list, got '832\\*480'"),
        ("size = [832, 480]", 'size = ["832", 480]', "size must be a whole number, got '832'"),
        ('videos = "clips"', "videos = 3", "videos must be text, got 3"),
        ("t_min = 875", 't_min = "high"', "t_min must be a finite number, got 'high'"),
        ("", 'preview_prompts = "a cat"\n', "preview_prompts must be a list, got 'a cat'"),
        ("", "architecture = [1]\n", r"architecture must be a table, got \[1\]"),
        ("", 'family = "nanno"\n', "family must be one of wan2.2, nano, got 'nanno'"),
        ("[data]", "[data", "run.toml: .*line 5"),
        ("", "\ufffe", "run.toml: "),
    ],
)
def test_wrong_types_and_broken_files_are_named(tmp_path, old, new, message):
    path = tmp_path / "run.toml"
    path.write_text(changed(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_toml(path)


def test_values_that_may_be_written_in_several_ways(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(changed("steps = 100", "steps = 100\nlearning_rate = 1\n[data.x]").replace("[data.x]", ""))
    assert TrainConfig.from_toml(path).loop.learning_rate == 1.0
