"""Fields of a config.json: values that are allowed, and defaults of missing ones."""

import json

import numpy as np
import pytest

from wan.configs import NANO_CONFIGS, WAN_CONFIGS
from wan.modules.model import WanModel
from wan.modules.model_config import LARGEST, WanModelConfig
from wan.nano.random import write_random_checkpoint

RELEASED = WAN_CONFIGS["i2v-A14B"].architecture()
STORED = {name: value for name, value in RELEASED.items() if name not in ("text_dim", "patch_size")}


def test_a_released_config_tells_ten_fields_and_some_that_are_ignored():
    assert len(STORED) == 10
    config = WanModelConfig.from_dict(STORED | {"_class_name": "WanModel", "_diffusers_version": "0.33.0"})
    assert config.to_dict() == RELEASED | {"window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True}


@pytest.mark.parametrize("field", STORED)
def test_a_field_that_is_missing_is_the_tasks_and_without_a_task_it_is_refused(field):
    task = NANO_CONFIGS["i2v-A14B"].architecture()
    less = {name: value for name, value in task.items() if name != field}
    assert WanModelConfig.from_dict(less, task) == WanModelConfig.from_dict(task)
    with pytest.raises(ValueError, match=f"it lacks {field}; a released config.json carries all of model_type, dim, "):
        WanModelConfig.from_dict(less)


WRONG = ["5", None, [], [5], {}, 5.0, True, 0, -1, 10**8, 10**30, float("nan"), float("inf"), "\x1b[31m" * 100]


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("field", LARGEST)
def test_whole_numbers_are_whole_and_have_a_range(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be a whole number from 1 to \d+, got ") as caught:
        WanModelConfig.from_dict(STORED | {field: value})
    assert len(str(caught.value)) < 200 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("field", "values", "rule"),
    [
        ("eps", ["1e-6", None, [], True, 0, -1, 1, float("nan"), float("inf"), 1e-300], "a number from 1e-12 to 0.1"),
        (
            "patch_size",
            [2, None, [], [1, 2], [1, 2, 2, 1], [1, 2, 0], [1, 2, 2.0], [1, 2, True]],
            "three whole numbers",
        ),
        ("window_size", [-1, None, ["a", "b"]], "two whole numbers"),
        ("qk_norm", ["true", 1, None, []], "true or false"),
        ("cross_attn_norm", ["no", 0], "true or false"),
        ("window_size", [[8, 8], []], "only global attention"),
        ("model_type", ["v2v", None, 3, ["t2v"], {}], "is not one of t2v, i2v"),
    ],
)
def test_other_fields_have_types_and_ranges(field, values, rule):
    for value in values:
        with pytest.raises(ValueError, match=rf"{field} .*{rule}|{rule}.*{field}"):
            WanModelConfig.from_dict(STORED | {field: value})


def test_numbers_of_numpy_are_numbers():
    config = WanModelConfig(dim=np.int64(32), num_heads=np.int32(2), eps=np.float32(1e-6))
    assert type(config.dim) is int and type(config.eps) is float
    assert json.loads(json.dumps(config.to_dict()))["dim"] == 32


def test_a_model_without_a_task_refuses_to_guess_and_names_the_file(tmp_path):
    expert = write_random_checkpoint(tmp_path) / "low_noise_model"
    values = json.loads((expert / "config.json").read_text())
    del values["num_heads"]
    (expert / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"low_noise_model/config\.json: it lacks num_heads"):
        WanModel.from_pretrained(expert)
    (expert / "config.json").write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON: it is nested too deeply"):
        WanModel.from_pretrained(expert)


def test_a_config_of_something_else_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"version": "1.0", "model": {}}')
    with pytest.raises(ValueError, match=r"config\.json: it has none of a model's fields"):
        WanModelConfig.read(tmp_path, RELEASED)
