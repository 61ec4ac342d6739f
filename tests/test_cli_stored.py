"""Requests that strangers stored in videos and latents: refused in one line before anything is loaded or sampled."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wan import cli, media, output, planning
from wan.configs import get_config
from wan.nano.random import write_random_checkpoint
from wan.request import Request


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("nano"))


@pytest.fixture(autouse=True)
def workplace(monkeypatch, tmp_path, checkpoint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "nano_checkpoint", lambda task: checkpoint)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(cli, "run", lambda job: pytest.fail("nothing may run"))


VALUES = Request.create(get_config("t2v-A14B", "nano"), prompt="a red circle", seed=1).to_dict()
STORED = {
    "frame_num": {"frame_num": "17"},
    "frames": {"frame_num": 16},
    "negative": {"negative_prompt": 5},
    "prompt": {"prompt": ["x"]},
    "steps": {"steps": 2.5},
    "fps": {"fps": 10**12},
    "task": {"task": ["t2v-A14B"]},
    "unknown": {"task": "\x1b[2J\x1b]0;pwned\x07" * 1000},
    "path": {"task": "i2v-A14B", "image": {"path": ["x"], "size": "64*64", "sha256": "0"}},
    "image": {"task": "i2v-A14B", "image": "a.png"},
    "dtype": {"dtype": ["bf16"]},
    "dtype name": {"dtype": "int4"},
    "checkpoint": {"checkpoint": {}},
    "saved": {"saved": "999999*999999"},
    "seed": {"seed": 2**64},
    "guidance": {"guidance": [True, 1]},
}
TEXTS = {name: json.dumps(VALUES | change) for name, change in STORED.items()} | {
    "nested": "[" * 100_000,
    "nested value": json.dumps(VALUES)[:-1] + ', "later": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "nan": json.dumps(VALUES | {"shift": float("nan")}),
    "infinite": json.dumps(VALUES).replace('"shift": 3.0', '"shift": 1e999'),
    "digits": json.dumps(VALUES).replace('"steps": 20', '"steps": ' + "9" * 5000),
    "list": "[]",
    "number": "5",
    "nothing": "",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("flag", ["--from_video", "--resume"])
def test_a_bad_stored_request_is_one_line(flag, name, capsys):
    if flag == "--resume":
        save_file({"latent": torch.zeros(16, 5, 8, 8)}, "a.latent.safetensors", {output.REQUEST_KEY: TEXTS[name]})
    else:
        media.write_video(np.zeros((1, 16, 16, 3), np.uint8), "a.mp4", 8, {output.REQUEST_KEY: TEXTS[name]})
    file = "a.latent.safetensors" if flag == "--resume" else "a.mp4"
    before = sorted(path.name for path in planning.Path().iterdir())
    assert cli.main([flag, file, "--device", "cpu"]) == cli.WRONG
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("generate.py: error: ") or "error: " in error
    assert len(error) < 1000 and error.isprintable()
    assert sorted(path.name for path in planning.Path().iterdir()) == before


@pytest.mark.parametrize("fps", ["0", "-1", "1000000", "1000000000000", "7.5", "nan", ""])
def test_rates_that_no_file_plays_are_refused(fps, capsys):
    assert cli.main(["--prompt", "a red circle", "--device", "cpu", "--fps", fps]) == cli.WRONG
    assert "--fps" in capsys.readouterr().err.splitlines()[-1]
