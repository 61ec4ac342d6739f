"""Language models of transformers: found by a folder, an alias or a name of the hub, checked, and downloaded."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from wan.checkpoint.source import TensorSource, folder_shards
from wan.files import did_you_mean, read_json, shown

log = logging.getLogger(__name__)

ALIASES = {
    "QwenVL2.5_3B": "Qwen/Qwen2.5-VL-3B-Instruct",
    "QwenVL2.5_7B": "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen2.5_3B": "Qwen/Qwen2.5-3B-Instruct",
    "Qwen2.5_7B": "Qwen/Qwen2.5-7B-Instruct",
    "Qwen2.5_14B": "Qwen/Qwen2.5-14B-Instruct",
}
NEEDED = {".json", ".txt", ".jinja", ".safetensors"}  # files of a repository
PATTERNS = [f"*{suffix}" for suffix in NEEDED]
MAX_CONFIG_BYTES = 2**24


def find_model(name: str, is_vl: bool) -> Path | str:
    """Find a local folder, which comes first, or the name on the hub of a model that must be downloaded.

    `is_vl`: it has to read images. Raises ValueError or FileNotFoundError for what cannot work.
    """
    folder = Path(name).expanduser()
    if folder.exists():
        _check_folder(folder, is_vl)
        return folder
    on_hub = ALIASES.get(name, name)
    if on_hub == name and (not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) or folder.parent.is_dir()):
        hint = did_you_mean(folder, 0.8) or f"; give a folder, owner/name of the hub, or one of {', '.join(ALIASES)}"
        raise FileNotFoundError(f"there is no language model {shown(name)}{hint}")
    from huggingface_hub import constants, snapshot_download

    try:
        folder = Path(snapshot_download(on_hub, allow_patterns=PATTERNS, local_files_only=True))
        _check_folder(folder, is_vl)
        return folder
    except (OSError, ValueError):  # it is not in the cache, or not all of it
        if constants.HF_HUB_OFFLINE:
            raise FileNotFoundError(
                f"{on_hub} is not in the Hugging Face cache, and HF_HUB_OFFLINE forbids the download; give a folder"
            ) from None
        return on_hub


def _check_folder(folder: Path, is_vl: bool) -> None:
    """Raise ValueError or FileNotFoundError unless a folder has a model, complete, for the request."""
    if not folder.is_dir():
        raise ValueError(f"{shown(folder)} is no folder; a server for it is used with --prompt_extend_method openai")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{shown(folder)} holds no config.json, so it is no language model of transformers")
    config = read_json(folder / "config.json", MAX_CONFIG_BYTES)
    if not isinstance(config, dict) or "model_type" not in config:
        raise ValueError(f"{shown(folder / 'config.json')} has no model_type, so it is no model of transformers")
    if is_vl and "vision_config" not in config:
        kind = shown(config["model_type"])
        raise ValueError(f"{shown(folder)} ({kind}) reads no images, and one is given; name a Qwen2.5-VL model")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(f"{shown(folder)} holds no tokenizer: neither tokenizer.json nor vocab.json")
    TensorSource(folder_shards(folder), shown(folder))  # reads the headers


def fetch(place: Path | str) -> Path:
    """Return the folder of a model that `find_model` found. What is downloaded is said before, with its size."""
    if isinstance(place, Path):
        return place
    from huggingface_hub import HfApi, constants, snapshot_download

    files = HfApi().model_info(place, files_metadata=True).siblings or []
    size = sum(file.size or 0 for file in files if Path(file.rfilename).suffix in NEEDED)
    log.info("downloading the language model %s, %.1f GB, into %s", place, size / 1e9, constants.HF_HUB_CACHE)
    return Path(snapshot_download(place, allow_patterns=PATTERNS))
