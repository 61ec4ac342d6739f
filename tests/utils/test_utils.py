"""Upstream's public helpers, called as scripts call them."""

import inspect
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wan.media import read_video
from wan.utils.utils import best_output_size, masks_like, rand_name, save_image, save_video, str2bool


def test_save_video_takes_a_batch_of_one_and_replaces(tmp_path):
    for _ in range(2):
        save_video(torch.zeros(1, 3, 5, 32, 32), save_file=tmp_path / "a.mp4", fps=10)
    frames, fps = read_video(tmp_path / "a.mp4")
    assert frames.shape == (5, 32, 32, 3) and fps == 10
    assert (frames.int() - 127).abs().max() <= 2


def test_save_video_raises(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        save_video(torch.zeros(3, 5, 32, 32), tmp_path / "file" / "a.mp4")


def test_save_image_maps_the_value_range(tmp_path):
    save_image(torch.full((1, 3, 8, 8), 0.5), tmp_path / "a.png", value_range=(0, 1))
    with Image.open(tmp_path / "a.png") as image:
        assert image.getpixel((0, 0)) == (127, 127, 127)


def test_the_signatures_are_upstreams():
    defaults = {"nrow": 8, "normalize": True, "value_range": (-1, 1)}
    for fn, others in (
        (save_video, {"save_file": None, "fps": 30, "suffix": ".mp4"}),
        (save_image, {"save_file": None}),
    ):
        parameters = inspect.signature(fn).parameters
        assert {name: p.default for name, p in list(parameters.items())[1:]} == others | defaults
        assert list(parameters) == ["tensor", *others, *defaults]


def test_several_become_a_grid(tmp_path):
    """The grid has two black pixels between and around, and rows of `nrow`; one alone has no border."""
    batch = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 3, 8, 6)
    save_image(batch, tmp_path / "a.png", nrow=3)
    found = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    assert found.shape == (2 * 10 + 2, 3 * 8 + 2, 3)
    corners = [(2 + 10 * (i // 3), 2 + 8 * (i % 3)) for i in range(6)]
    assert [found[y, x, 0] for y, x in corners] == [0, 63, 127, 191, 255, 0]
    assert [found[y + 7, x + 5, 2] for y, x in corners] == [0, 63, 127, 191, 255, 0]
    assert not found[[0, 1, 10, 11, 20, 21]].any() and not found[:, [0, 1, 8, 9, 16, 17, 24, 25]].any()
    save_video(batch[:, :, None].expand(5, 3, 9, 8, 6), tmp_path / "a.mp4", nrow=8)
    frames, _ = read_video(tmp_path / "a.mp4")
    assert frames.shape == (9, 12, 42, 3)
    assert abs(int(frames[4, 6, 37, 0]) - 255) < 6


def test_values_without_a_range_are_0_to_1(tmp_path):
    save_image(torch.tensor([-1.0, 0.25, 1.0, 3.0]).expand(1, 1, 2, 4), tmp_path / "a.png", normalize=False)
    assert np.asarray(Image.open(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 63, 255, 255]


def test_without_a_name_a_random_one_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    paths = [Path(save_video(torch.zeros(1, 3, 1, 16, 16), suffix="mp4")), Path(save_image(torch.zeros(3, 4, 4)))]
    assert [path.parent for path in paths] == [tmp_path] * 2 and all(path.is_file() for path in paths)
    assert [path.suffix for path in paths] == [".mp4", ".png"]


def test_rand_name():
    assert re.fullmatch("[0-9a-f]{16}", rand_name()) and rand_name() != rand_name()
    assert re.fullmatch(r"[0-9a-f]{6}\.mp4", rand_name(3, ".mp4")) and rand_name(suffix="png").count(".") == 1


@pytest.mark.parametrize(
    "tensor, options, text",
    [
        (torch.zeros(1, 4, 2, 16, 16), {}, "1 or 3 channels"),
        (torch.zeros(16, 16), {}, "1 or 3 channels"),
        (torch.full((1, 3, 2, 16, 16), float("nan")), {}, "not finite"),
        (torch.zeros(1, 3, 2, 16, 16), {"value_range": (1, -1)}, "low, high"),
        (torch.zeros(1, 3, 2, 16, 16), {"fps": "thirty"}, "fps must be a finite number"),
        (torch.zeros(1, 3, 2, 16, 16), {"fps": 0}, "fps must be at least 1"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path, tensor, options, text):
    with pytest.raises(ValueError, match=text):
        save_video(tensor, tmp_path / "a.mp4", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [12.5, 16.0, np.int64(24)])
def test_a_frame_rate_may_be_any_number(tmp_path, fps):
    save_video(torch.zeros(1, 3, 3, 16, 16), tmp_path / "a.mp4", fps=fps)
    assert read_video(tmp_path / "a.mp4")[1] == fps


def test_masks_like():
    latents = [torch.zeros(2, 3, 4, 4)]
    ones, again = masks_like(latents)
    assert ones[0].eq(1).all() and again[0].eq(1).all()
    mask = masks_like(latents, zero=True)[0][0]
    assert mask[:, 0].eq(0).all() and mask[:, 1:].eq(1).all()


def test_old_names():
    assert best_output_size(1280, 720, 32, 32, 704 * 1280) == (1248, 704)
    assert str2bool("yes") is True
