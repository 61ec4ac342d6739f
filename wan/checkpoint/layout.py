"""Check that a checkpoint folder is complete, before any weight is read."""

from __future__ import annotations

from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from wan.checkpoint.loading import inferred_config
from wan.checkpoint.source import PICKLED_SUFFIXES, folder_shards, open_source

OF_A_MODEL = ("config.json", ".safetensors", ".safetensors.index.json")  # ends of the names of its files
NEVER_READ = (".md", ".gitattributes", ".msgpack", ".h5", ".ot", ".onnx")  # beside the weights of other libraries
DOWNLOAD_GB = {"t2v-A14B": 126, "i2v-A14B": 126, "ti2v-5B": 34, "s2v-14B": 46}

# Weights that a task may have besides its diffusion models: the field of its config, and what it is.
WEIGHTS = {
    "t5_checkpoint": "the text encoder",
    "vae_checkpoint": "the video autoencoder",
    "speech_checkpoint": "the speech encoder",
    "clip_checkpoint": "the image encoder",
    "lora_checkpoint": "the relighting LoRA",
}

# Other published names of the files of a `TaskConfig`, in the order of the search; a .pth may also be a
# .safetensors of the same stem.
STAND_INS: dict[str, tuple[str, ...]] = {
    "models_t5_umt5-xxl-enc-bf16.pth": ("umt5-xxl-enc-bf16.safetensors", "umt5_xxl_fp16.safetensors", "text_encoder"),
    "Wan2.1_VAE.pth": ("wan_2.1_vae.safetensors", "vae"),
    "Wan2.2_VAE.pth": ("wan2.2_vae.safetensors", "vae"),
    "google/umt5-xxl": ("tokenizer",),
    "relighting_lora.ckpt": ("relighting_lora/adapter_model.safetensors",),
}


def check_folder(checkpoint_dir: str | Path, config: Any) -> None:
    """Check that the folder of a task holds everything that `config` (a `TaskConfig`) names, shard by shard.

    Only directory listings, indices, headers and the ends of .pth files are read. Raises FileNotFoundError listing
    everything that is missing at once with the command that downloads it, ValueError when files are there but damaged.
    """
    folder = Path(checkpoint_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint folder {folder}. Download it with: {download(config, folder)}")
    missing: list[str] = []
    damaged: list[str] = []
    for expert in sorted(config.experts):
        where = "" if expert == "." else f"{expert}/"
        if not (folder / expert).is_dir():
            missing.append(f"{where} (a diffusion model)")
            continue
        try:
            if not (folder / expert / "config.json").is_file():
                inferred_config(folder / expert)
        except FileNotFoundError as error:
            missing.append(f"{where}config.json{f', and {error}' if str(error) else ''}")
        except ValueError as error:
            damaged.append(str(error))
        try:
            open_source(folder / expert)
        except FileNotFoundError as error:
            missing.append(f"{where}: {error}" if where else str(error))
        except ValueError as error:
            damaged.append(str(error))
    for file, role in weights_of(config).items():
        read = weight_files if role == WEIGHTS["lora_checkpoint"] else open_source  # an adapter is no model
        try:
            read(part(folder, file))
        except FileNotFoundError:
            missing.append(f"{file} ({role})")
        except ValueError as error:
            damaged.append(str(error))
    if not (part(folder, config.t5_tokenizer) / "tokenizer.json").is_file():
        missing.append(f"{config.t5_tokenizer}/tokenizer.json (the tokenizer)")
    lines = [*(f"  missing: {item}" for item in missing), *(f"  not usable: {item}" for item in dict.fromkeys(damaged))]
    if not lines:
        return
    if config.family == "nano" and missing == [f"{config.lora_checkpoint} ({WEIGHTS['lora_checkpoint']})"]:
        cure = "leave use_relighting_lora out, or load a released checkpoint"
        raise FileNotFoundError(f"{folder} is a nano model, and those have no relighting LoRA; {cure}")
    message = [f"{folder} is not a complete checkpoint of {config.name}:", *lines]
    if not missing:
        raise ValueError("\n".join(message))
    if config.family != "nano":  # nano checkpoints are not published
        names = ("config.json", config.t5_tokenizer, *weights_of(config), *config.experts)
        is_begun = any((folder / own_name(name)).exists() for name in names if name != ".")
        place = folder if is_begun or is_empty(folder) else free_place(config)
        message.append(f"Download it with: {download(config, place)}")
    raise FileNotFoundError("\n".join(message))


def part(folder: str | Path, name: str) -> Path:
    """Find a file or folder of a checkpoint by its name in a `TaskConfig`: `file` or `../sibling/file`.

    The checkpoint's own file comes before the sibling's. `STAND_INS` lists other names for it. When none exists, the
    result is the path of `name`.
    """
    own = own_name(name)
    names = [PurePosixPath(own), *map(PurePosixPath, STAND_INS.get(own, ()))]
    if names[0].suffix in PICKLED_SUFFIXES:
        names.insert(1, names[0].with_suffix(".safetensors"))
    found = (Path(folder) / candidate for candidate in (*names, name) if (Path(folder) / candidate).exists())
    return next(found, Path(folder) / name)


def parts(config: Any) -> list[str]:
    """List the files and folders of a task's released checkpoint, by the names in its `TaskConfig`; "." is its top."""
    named = (value for field, value in config.items() if value and field.endswith(("_checkpoint", "_tokenizer")))
    return [*config.experts, *(name for name in named if name not in config.experts)]


def part_of(path: str, config: Any) -> str | None:
    """Name the part that a file of the released repository belongs to; None for a file that the task does not read."""
    folder, _, name = path.rpartition("/")
    if (folder or ".") in config.experts and name.endswith(OF_A_MODEL):
        return folder or "."
    if name.endswith(NEVER_READ):
        return None
    others = (part for part in parts(config) if part not in config.experts)
    return next((part for part in others if path == part or path.startswith(f"{part}/")), None)


def weights_of(config: Any) -> dict[str, str]:
    """Map the names of a task's weights besides its diffusion models to what they are."""
    used = {
        field: role
        for field, role in WEIGHTS.items()
        if field != "lora_checkpoint" or getattr(config, "uses_lora", False)
    }
    return {name: role for field, role in used.items() if (name := getattr(config, field, None))}


def weight_files(path: Path) -> list[Path]:
    """List the files of a part: the file itself, or the shards of a folder. Raises FileNotFoundError."""
    if path.is_dir():
        return list(folder_shards(path))
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    return [path]


def stored_bytes(path: Path) -> int:
    """Size of the weights of a part on disk."""
    return sum(file.stat().st_size for file in weight_files(path))


def own_name(name: str) -> str:
    """`../sibling/file` -> `file`: the name in a checkpoint that shares nothing."""
    parts = PurePosixPath(name).parts
    return str(PurePosixPath(*parts[2:])) if parts[:1] == ("..",) else name


def repository(config: Any) -> str:
    """Name of the released repository of a task: t2v-A14B -> Wan2.2-T2V-A14B."""
    task, _, size = config.name.partition("-")
    return f"Wan2.2-{ {'animate': 'Animate'}.get(task, task.upper()) }-{size}"


def download(config: Any, place: str | Path | None = None) -> str:
    """The command that downloads the checkpoint of a task into a folder, a new one by default, with the size."""
    return f"hf download Wan-AI/{repository(config)} --local-dir {place or free_place(config)} ({size_of(config.name)})"


def size_of(task: str) -> str:
    """Size of the download of a task, as far as it is known."""
    return f"{DOWNLOAD_GB[task]} GB" if task in DOWNLOAD_GB else "tens of GB"


def is_empty(folder: Path) -> bool:
    """Tell whether a folder holds at most what a broken download or a file manager leaves behind."""
    return all(path.name in (".cache", ".huggingface", ".gitattributes", ".DS_Store") for path in folder.iterdir())


def free_place(config: Any) -> Path:
    """Name a folder for the checkpoint of a task; no such folder exists yet."""
    name = repository(config)
    places = (Path(name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(place for place in places if not place.exists())
