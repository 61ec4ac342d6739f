"""Files beside the video: safe names, and the sampled clips that outlive a failure."""

from __future__ import annotations

import itertools
import logging
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from wan.clips import SampledClip
from wan.files import atomic_file, no_file, numbered, shown, stored_name, utf8_name
from wan.geometry import Size

log = logging.getLogger(__name__)

LATENT_SUFFIX = ".latent.safetensors"
CLIPS_SUFFIX = ".clips"  # of a folder, when a video has several
SLUG_LENGTH = 50  # characters of a prompt in a name, and
SLUG_BYTES = 150  # bytes; the rest of 255 is enough for task, size, seed and time
REQUEST_KEY = "wan_request"  # key of the request in the metadata of files made here


def default_name(task: str, size: Size, prompt: str, seed: int, now: datetime) -> str:
    """Make a name like `t2v-A14B_1280x720_two_cats_42_20260131_235959.mp4`, which fits every file system."""
    parts = (task, f"{size[0]}x{size[1]}", slug(prompt), str(seed), f"{now:%Y%m%d_%H%M%S}")
    return "_".join(parts) + ".mp4"


def slug(text: str) -> str:
    """Join letters and digits of any script by single `_`: at most 50 characters and 150 bytes, never empty.

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
    """Find a free name beside the video for its latent."""
    for path in numbered(video, LATENT_SUFFIX):
        if not os.path.lexists(path):
            return path
    raise ValueError(f"there are too many unfinished latents of {video}; finish them with --resume, or delete them")


def free_path(video: Path) -> Path:
    """Return the video's own name, or the next one that is free."""
    return next((path for path in numbered(video, video.suffix) if not os.path.lexists(path)), video)


def video_path(latent: Path, stored: object = None) -> Path:
    """Name the video of a saved latent, beside the latent: `stored`, if that is a plain name."""
    name = stored_name(stored) if isinstance(stored, str) else ""
    if "\0" not in name and Path(name).name == name not in ("", ".."):
        return latent.with_name(name)  # a file of unknown origin cannot choose another folder
    ends = [end for end in (LATENT_SUFFIX, CLIPS_SUFFIX, ".safetensors") if latent.name.endswith(end)]
    return latent.with_name(latent.name.removesuffix(ends[0] if ends else "") + ".mp4")


def keep_clips(clips: Sequence[SampledClip], video: Path, request_json: str, count: int) -> Path:
    """Write the first sampled clips of a video of `count` clips, with its request; returns the path.

    One clip is one file, several are a folder. They are beside the video, else in the temporary folder of the system.
    Raises OSError when they cannot be written anywhere.
    """
    reasons: list[OSError] = []
    for place in _places(video):
        try:
            for path in numbered(place, LATENT_SUFFIX if count == 1 else CLIPS_SUFFIX):
                try:
                    if count == 1:
                        return save_clip(clips[0], path, request_json)
                    path.mkdir(parents=True)
                except FileExistsError:  # of another run, perhaps of this moment
                    continue
                for index, clip in enumerate(clips):
                    add_clip(clip, path, index, request_json)
                return path
        except OSError as error:
            log.warning("the latent cannot be kept in %s (%s)", place.parent, error)
            reasons.append(error)
    raise reasons[-1] if reasons else FileExistsError(f"there are too many unfinished latents of {video}")


def _places(video: Path) -> Iterator[Path]:
    yield video
    yield Path(tempfile.gettempdir(), video.name)  # raises OSError where there is none


def add_clip(clip: SampledClip, folder: Path, index: int, request_json: str) -> None:
    """Write clip `index` into the folder of the earlier ones."""
    save_clip(clip, folder / f"{index:05d}.safetensors", request_json)


def kept_clips(path: Path) -> list[Path]:
    """List the files of the clips that are kept as `path`, from the first one to the first gap."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    files = (path / f"{index:05d}.safetensors" for index in itertools.count())
    return list(itertools.takewhile(Path.is_file, files))


def kept_beside(video: Path) -> Path | None:
    """Find what is kept of a video that is not there."""
    paths = (next(numbered(video, suffix)) for suffix in (CLIPS_SUFFIX, LATENT_SUFFIX))
    return next((path for path in paths if kept_clips(path)), None)


def remove_clips(path: Path) -> None:
    """Remove the files of `keep_clips`. Raises OSError."""
    for file in kept_clips(path):
        file.unlink(missing_ok=True)
    if path.is_dir():
        path.rmdir()


def save_clip(clip: SampledClip, path: Path, request_json: str) -> Path:
    """Write one file and return its path. Raises OSError, FileExistsError when the name is taken."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name in ("latent", "lead") if (tensor := getattr(clip, name)) is not None}
    texts = {name: str(number) for name in ("skip", "drop") if (number := getattr(clip, name))}
    with atomic_file(path, overwrite=False) as temporary:
        try:
            save_file(tensors, str(temporary), texts | {REQUEST_KEY: encodable(request_json)})
        except SafetensorError as error:  # the library reports a full disk like this
            raise OSError(str(error)) from None
    return path


def load_clip(path: Path) -> SampledClip:
    """Read the clip in a file of `save_clip`. Raises ValueError for other files."""
    return _read(path)[0]


def stored_request(path: Path) -> str:
    """Read the request of kept clips. Raises ValueError, and FileNotFoundError when there is nothing."""
    if path.is_dir() and not kept_clips(path):
        raise ValueError(f"{path} is a folder without kept clips (*{CLIPS_SUFFIX} has them)")
    return _read((kept_clips(path) or [path])[0])[1]


def _read(path: Path) -> tuple[SampledClip, str]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise no_file(path)
    try:
        with utf8_name(path) as name, safe_open(name, "pt") as file:
            texts = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in ("latent", "lead") if key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a saved latent, or a damaged one ({shown(error)})") from None
    numbers = {name: texts.get(name, "0") for name in ("skip", "drop")}
    if REQUEST_KEY not in texts or "latent" not in tensors or not all(text.isdecimal() for text in numbers.values()):
        raise ValueError(f"{path} is not a saved latent; the names of saved latents end in {LATENT_SUFFIX}")
    return SampledClip(**tensors, **{name: int(text[:9]) for name, text in numbers.items()}), texts[REQUEST_KEY]


def encodable(json_text: str) -> str:
    """Make JSON valid UTF-8: an undecodable byte, a lone surrogate in Python, becomes its JSON escape `\\udcba`."""
    return json_text.encode("utf-8", "backslashreplace").decode("utf-8")
