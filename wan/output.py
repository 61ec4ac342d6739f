"""Files beside the video: safe names, and the latent that outlives a failed decode."""

import re
import unicodedata
from datetime import datetime
from pathlib import Path

from torch import Tensor

from wan.files import atomic_file
from wan.geometry import Size

LATENT_SUFFIX = ".latent.safetensors"
SLUG_LENGTH = 50
REQUEST_KEY = "wan_request"  # where files made here carry what was asked


def default_name(task: str, size: Size, prompt: str, seed: int, now: datetime) -> str:
    """`t2v-A14B_1280x720_two_cats_42_20260131_235959.mp4`: fits every file system."""
    parts = (task, f"{size[0]}x{size[1]}", slug(prompt), str(seed), f"{now:%Y%m%d_%H%M%S}")
    return "_".join(parts) + ".mp4"


def slug(text: str) -> str:
    """Letters and digits of any script joined by single `_`, at most 50 characters and never empty."""
    words = re.sub(r"[\W_]+", "_", unicodedata.normalize("NFC", text))
    return words.strip("_")[:SLUG_LENGTH].strip("_") or "video"


def latent_path(video: Path) -> Path:
    """A free name beside the video for the latent it is decoded from."""
    for number in range(1, 1000):
        path = video.with_name(video.stem + (f"-{number}" if number > 1 else "") + LATENT_SUFFIX)
        if not path.exists():
            return path
    raise ValueError(f"there are too many unfinished latents of {video}; finish them with --resume, or delete them")


def video_path(latent: Path) -> Path:
    """The video a saved latent was meant to become."""
    return latent.with_name(latent.name.removesuffix(LATENT_SUFFIX).removesuffix(".safetensors") + ".mp4")


def save_latent(latent: Tensor, path: Path, request_json: str) -> None:
    """Write a latent [z, T, H, W] with the request it answers, complete or not at all."""
    from safetensors.torch import save_file

    with atomic_file(path, overwrite=False) as temporary:
        save_file({"latent": latent.contiguous()}, str(temporary), metadata={REQUEST_KEY: request_json})


def load_latent(path: Path) -> tuple[Tensor, str]:
    """The latent and the request of `save_latent`. Raises ValueError for other files."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} to resume from")
    try:
        with safe_open(str(path), "pt") as file:
            request_json = (file.metadata() or {}).get(REQUEST_KEY)
            latent = file.get_tensor("latent") if "latent" in file.keys() else None  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise ValueError(f"{path} is not a saved latent ({error})") from None
    if request_json is None or latent is None:
        raise ValueError(f"{path} is not a saved latent: it ends in {LATENT_SUFFIX} and lies beside the missing video")
    return latent, request_json
