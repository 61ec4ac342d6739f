"""The old public helpers, called as scripts call them."""

import pytest
import torch
from PIL import Image

from wan.media import read_video
from wan.utils.utils import best_output_size, masks_like, save_image, save_video, str2bool


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


def test_masks_like():
    latents = [torch.zeros(2, 3, 4, 4)]
    ones, again = masks_like(latents)
    assert ones[0].eq(1).all() and again[0].eq(1).all()
    mask = masks_like(latents, zero=True)[0][0]
    assert mask[:, 0].eq(0).all() and mask[:, 1:].eq(1).all()


def test_old_names():
    assert best_output_size(1280, 720, 32, 32, 704 * 1280) == (1248, 704)
    assert str2bool("yes") is True
