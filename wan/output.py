"""Files beside the video: safe names, and the latent that outlives a failed decode."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from torch import Tensor

from wan.files import atomic_file, no_file, numbered, shown, stored_name, utf8_name
from wan.geometry import Size

log = logging.getLogger(__name__)

LATENT_SUFFIX = ".latent.safetensors"
SLUG_LENGTH = 50  # characters of a prompt in a name, and
SLUG_BYTES = 150  # bytes: what is left of 255 for task, size, seed and time is enough
REQUEST_KEY = "wan_request"  # where files made here carry what was asked


def default_name(task: str, size: Size, prompt: str, seed: int, now: datetime) -> str:
    """`t2v-A14B_1280x720_two_cats_42_20260131_235959.mp4`: fits every file system."""
    parts = (task, f"{size[0]}x{size[1]}", slug(prompt), str(seed), f"{now:%Y%m%d_%H%M%S}")
    return "_".join(parts) + ".mp4"


def slug(text: str) -> str:
    """Letters and digits of any script joined by single `_`, at most 50 characters and 150 bytes, never empty.

    Characters that the file names of this system cannot hold are left out.
    """
    words = re.sub(r"[\W_]+", "_", unicodedata.normalize("NFC", text)).strip("_")[:SLUG_LENGTH]
    short = "".join(_fitting(words)).strip("_")
    return short or "video"


def _fitting(text: str) -> list[str]:
    kept, size = [], 0
    for character in text:
        try:
            size += len(os.fsencode(character))
        except UnicodeEncodeError:
            continue
        if size > SLUG_BYTES:
            break
        kept.append(character)
    return kept


def latent_path(video: Path) -> Path:
    """A free name beside the video for the latent it is decoded from."""
    for path in numbered(video, LATENT_SUFFIX):
        if not os.path.lexists(path):
            return path
    raise ValueError(f"there are too many unfinished latents of {video}; finish them with --resume, or delete them")


def free_path(video: Path) -> Path:
    """The video's own name, or the next one that is free."""
    return next((path for path in numbered(video, video.suffix) if not os.path.lexists(path)), video)


def video_path(latent: Path, stored: object = None) -> Path:
    """The video a saved latent was meant to become, beside the latent: `stored` where that is a plain name."""
    name = stored_name(stored) if isinstance(stored, str) else ""
    if "\0" not in name and Path(name).name == name not in ("", ".."):
        return latent.with_name(name)  # a file of a stranger cannot name a place elsewhere
    return latent.with_name(latent.name.removesuffix(LATENT_SUFFIX).removesuffix(".safetensors") + ".mp4")


def keep_latent(latent: Tensor, video: Path, request_json: str) -> Path:
    """Write a latent [z, T, H, W] with the request it answers, complete or not at all; where it lies now.

    Beside the video, else in the temporary folder of the system. Raises OSError when it cannot be written anywhere.
    """
    reasons: list[OSError] = []
    for place in _places(video):
        try:
            for path in numbered(place, LATENT_SUFFIX):
                try:
                    return save_latent(latent, path, request_json)
                except FileExistsError:  # of another run, perhaps of this moment
                    continue
        except OSError as error:
            log.warning("the latent cannot be kept in %s (%s)", place.parent, error)
            reasons.append(error)
    raise reasons[-1] if reasons else FileExistsError(f"there are too many unfinished latents of {video}")


def _places(video: Path) -> Iterator[Path]:
    yield video
    yield Path(tempfile.gettempdir(), video.name)  # raises OSError where there is none


def save_latent(latent: Tensor, path: Path, request_json: str) -> Path:
    """Write one latent file and return its path. Raises OSError, FileExistsError when the name is taken."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_file(path, overwrite=False) as temporary:
        try:
            save_file({"latent": latent.contiguous()}, str(temporary), {REQUEST_KEY: encodable(request_json)})
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(str(error)) from None
    return path


def load_latent(path: Path) -> tuple[Tensor, str]:
    """The latent and the request of `save_latent`. Raises ValueError for other files."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise no_file(path)
    try:
        with utf8_name(path) as name, safe_open(name, "pt") as file:
            request_json = (file.metadata() or {}).get(REQUEST_KEY)
            latent = file.get_tensor("latent") if "latent" in file.keys() else None  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a saved latent, or a damaged one ({shown(error)})") from None
    if request_json is None or latent is None:
        raise ValueError(
            f"{path} is not a saved latent; their names end in {LATENT_SUFFIX}, and they lie where the video was to be"
        )
    return latent, request_json


def encodable(json_text: str) -> str:
    """JSON that holds the same text and is valid UTF-8, also where a text came with bytes that are not.

    Such a byte is a lone surrogate in Python; its escape `\\udcba` is what JSON calls it, too.
    """
    return json_text.encode("utf-8", "backslashreplace").decode("utf-8")
