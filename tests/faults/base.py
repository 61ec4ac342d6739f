"""Sound files from which inputs are made: random checkpoints, pictures of every format, videos and latents."""

import io
import json
import os
import shutil
import wave
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.checkpoint.published import core_map, diffusers_config, renamed
from wan import cli, media, output
from wan.nano.random import write_random_checkpoint

TASKS = ("t2v-A14B", "i2v-A14B", "ti2v-5B")
WEIGHTS = "diffusion_pytorch_model.safetensors"
T5 = "models_t5_umt5-xxl-enc-bf16.pth"
VAES = {"t2v-A14B": "Wan2.1_VAE.pth", "i2v-A14B": "Wan2.1_VAE.pth", "ti2v-5B": "Wan2.2_VAE.pth"}
TOKENIZER = "google/umt5-xxl/tokenizer.json"
PAIR = ("high_noise_model", "low_noise_model")
EXPERTS = {"t2v-A14B": PAIR, "i2v-A14B": PAIR, "ti2v-5B": (".",)}
SMALL = ("--frame_num", "1", "--sample_steps", "2", "--sample_shift", "1", "--base_seed", "1")  # both experts work once
FORMATS = {  # suffix -> Pillow's name and the mode of the picture
    ".png": ("PNG", "RGB"), ".p.png": ("PNG", "P"), ".16.png": ("PNG", "I;16"), ".a.png": ("PNG", "RGBA"),
    ".jpg": ("JPEG", "RGB"), ".cmyk.jpg": ("JPEG", "CMYK"), ".webp": ("WEBP", "RGB"), ".gif": ("GIF", "P"),
    ".bmp": ("BMP", "RGB"), ".tif": ("TIFF", "RGB"), ".f.tif": ("TIFF", "F"), ".ppm": ("PPM", "RGB"),
    ".pgm": ("PPM", "I;16"), ".avif": ("AVIF", "RGB"), ".ico": ("ICO", "RGBA"), ".tga": ("TGA", "RGB"),
    ".jp2": ("JPEG2000", "RGB"), ".mpo": ("MPO", "RGB"), ".sgi": ("SGI", "RGB"), ".pcx": ("PCX", "RGB"),
    ".qoi": ("QOI", "RGB"), ".dds": ("DDS", "RGB"), ".icns": ("ICNS", "RGBA"), ".eps": ("EPS", "RGB"),
    ".pdf": ("PDF", "RGB"), ".xbm": ("XBM", "1"), ".im": ("IM", "RGB"), ".spider": ("SPIDER", "F"),
    ".msp": ("MSP", "1"), ".blp": ("BLP", "P"),
}  # fmt: skip


TRAINING = """
checkpoint = {checkpoint}
output = "out"
family = "nano"
[data]
videos = "clips"
cache = "cache"
size = [64, 64]
frame_num = 1
[loop]
steps = 2
"""


@dataclass
class Base:
    """Files below `folder`, made once in a process; none of them may change."""

    folder: Path

    def __post_init__(self) -> None:
        for task in TASKS:
            write_random_checkpoint(self.folder / task, task)
        for task in ("t2v-A14B", "ti2v-5B"):
            flags = ["--prompt", "a red circle", *SMALL, "--device", "cpu", "--progress", "none"]
            place = ["--ckpt_dir", str(self.folder / task), "--save_file", str(self.video(task))]
            assert cli.main(["--task", task, *flags, *place]) == 0

        self._train(self.folder / "training")

    def _train(self, folder: Path) -> None:
        """Run the trainer to its end; the run can be continued."""
        from wan.training.__main__ import main

        (folder / "clips").mkdir(parents=True)
        (folder / "clips" / "one.mp4").write_bytes(self.video("t2v-A14B").read_bytes())
        (folder / "clips" / "one.txt").write_text("a red circle\na circle that is red\n")
        (folder / "config.toml").write_text(TRAINING.format(checkpoint=json.dumps(str(self.folder / "t2v-A14B"))))
        here = os.getcwd()
        os.chdir(folder)
        main(["config.toml"])
        os.chdir(here)

    def link_training(self, target: Path) -> list[str]:
        """Link that run to another place, where it appends to its log; return the names of the files it reads."""
        folder = self.folder / "training"
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / name, target / name)
        return [name for name in names if name.split("/")[0] in ("clips", "cache") or name.endswith("state.pt")]

    def video(self, task: str) -> Path:
        return self.folder / f"{task}.mp4"

    def files(self, task: str) -> list[str]:
        """Names of a checkpoint's files within its folder."""
        folder = self.folder / task
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def link(self, task: str, target: Path) -> Path:
        """Link the checkpoint of a task to another place."""
        for name in self.files(task):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(self.folder / task / name, target / name)
        return target

    def request(self, task: str) -> dict[str, Any]:
        return json.loads(media.read_metadata(self.video(task))[output.REQUEST_KEY])

    def latent(self, task: str) -> torch.Tensor:
        shape = (48, 1, 4, 4) if task == "ti2v-5B" else (16, 1, 8, 8)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def state(self, task: str, name: str) -> dict[str, torch.Tensor]:
        return torch.load(self.folder / task / name, weights_only=True)

    @cached_property
    def pictures(self) -> dict[str, bytes]:
        """Write a picture of 64x64 in each format that this Pillow writes; return them by suffix."""
        from PIL import Image

        rows = np.arange(64)
        rgb = Image.fromarray(np.stack(np.broadcast_arrays(rows[:, None] * 4, rows * 4, 99), -1).astype(np.uint8))
        found = {}
        for suffix, (name, mode) in FORMATS.items():
            grey = rgb.convert("L")
            picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else rgb.convert(mode)
            more = {"save_all": True, "append_images": [picture]} if name == "MPO" else {}
            out = io.BytesIO()
            try:
                picture.save(out, name, **more)
            except (KeyError, OSError, ValueError):  # a format that this build of Pillow does not write
                continue
            found[suffix] = out.getvalue()
        frames = [rgb.rotate(90 * i) for i in range(3)]
        for suffix, name in ((".many.gif", "GIF"), (".many.png", "PNG"), (".many.webp", "WEBP"), (".many.tif", "TIFF")):
            out = io.BytesIO()
            frames[0].save(out, name, save_all=True, append_images=frames[1:])
            found[suffix] = out.getvalue()
        exif = Image.Exif()
        exif[0x0112] = 6
        out = io.BytesIO()
        rgb.save(out, "JPEG", exif=exif, icc_profile=b"x" * 200)
        return found | {".exif.jpg": out.getvalue()}

    @cached_property
    def tone(self) -> bytes:
        """A quarter of a second of sound, as WAV."""
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((np.sin(np.arange(2000)) * 20_000).astype("<i2").tobytes())
        return out.getvalue()

    @cached_property
    def diffusers(self) -> dict[str, bytes]:
        """Write the files of `transformer/` as Diffusers does for one expert of t2v-A14B."""
        from safetensors.torch import load_file, save

        folder = self.folder / "t2v-A14B" / "low_noise_model"
        state = load_file(folder / WEIGHTS)
        config = json.loads((folder / "config.json").read_text())
        named = renamed(
            state, {name: to for name, to in core_map("dit", config["num_layers"]).items() if name in state}
        )
        described = diffusers_config(config) | {
            key: config[key] for key in ("freq_dim", "eps", "family") if key in config
        }
        return {"config.json": json.dumps(described).encode(), WEIGHTS: save(named)}


def with_request(path: Path, request: str) -> None:
    """Write a video of one grey frame that carries a request."""
    frame = np.full((1, 64, 64, 3), 99, np.uint8)
    media.write_video(frame, path, 8, {output.REQUEST_KEY: request}, overwrite=True)
