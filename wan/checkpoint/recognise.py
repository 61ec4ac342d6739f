"""Recognise what a path given as a checkpoint holds, from listings, headers and `config.json`, not from its name."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wan.checkpoint.architecture import model_type_of, released_fields
from wan.checkpoint.formats import LORA, Content, foreign_file, what_is
from wan.checkpoint.layout import STAND_INS, is_empty, weight_files
from wan.checkpoint.source import PICKLED_SUFFIXES, read_header
from wan.files import read_json, shown

EXPERTS = ("high_noise_model", "low_noise_model")
TASKS = {"t2v": "t2v-A14B", "i2v": "i2v-A14B", "ti2v": "ti2v-5B", "s2v": "s2v-14B", "animate": "animate-14B"}
TWO_EXPERTS = ("t2v-A14B", "i2v-A14B")
ONE_MODEL = ("ti2v-5B", "s2v-14B", "animate-14B")  # tasks whose model lies at the top of the folder
ANIMATE_FIELDS = ("motion_encoder_dim", "use_img_emb")  # of a config.json that has no model_type
ANIMATE_FILES = ("process_checkpoint", "relighting_lora.ckpt")  # beside it
COMFYUI_FOLDERS = {"diffusion_models", "unet", "text_encoders", "clip", "vae", "loras", "checkpoints"}
MAX_CONFIG_BYTES = 1_000_000
MAX_FOLDERS = 300  # searched below a folder that is no checkpoint itself
MAX_DEPTH = 3  # hub / models--Wan-AI--... / snapshots / revision
SHOWN = 6
OTHER_FILE = "a file without weights"
EMPTY = "an empty folder"

# Descriptions of files without weights, by their endings.
OTHER_FILES = {
    ".gguf": "a GGUF file, which this version does not read",
    ".json": "a JSON file",
    **dict.fromkeys((".mp4", ".mkv", ".mov", ".webm", ".avi"), "a video; --from_video repeats one"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".bmp"), "a picture; --image makes a video from one"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".7z", ".rar"), "an archive; unpack it"),
}


@dataclass(frozen=True)
class Found:
    """Description of a path: `what` continues the words "PATH is".

    `folder`: the checkpoint that is meant, if only one can be; `inner`: the number of checkpoints below the path.
    """

    what: str
    task: str | None = None
    folder: Path | None = None
    inner: int = 0


def recognise(path: Path) -> Found:
    """Describe an existing path. A checkpoint, complete or not, is its own `folder`; its task may stay None."""
    if path.is_file():
        found = Found(_describe_file(path))
    elif not path.is_dir():
        return Found("neither a file nor a folder")
    elif checkpoint := _checkpoint(path):
        return checkpoint
    else:
        found = _describe_folder(path)
    return found if found.folder else _inside_another(path, found) or found


def refusal(path: Path, found: Found, task: str | None) -> str | None:
    """Say why a path cannot be the checkpoint folder of a task; None when it may be, complete or not."""
    if found.folder is None:
        return f"{shown(path)} is no checkpoint folder, it is {found.what}"
    if found.folder != path:
        return f"{shown(path)} is {found.what}, and not a checkpoint folder itself"
    if found.task not in (None, task):
        return f"{shown(path)} is {found.what}, not of {task}"
    return None


def loras_beside(checkpoint_dir: Path, expert_folders: Iterator[str] | tuple[str, ...]) -> list[Path]:
    """List the LoRA files in a checkpoint folder, beside its models or in folders of their own."""
    places = (checkpoint_dir, *(checkpoint_dir / place for place in (*expert_folders, "lora", "loras", "LoRA", "Lora")))
    files = {os.path.realpath(file): file for place in places if place.is_dir() for file in sorted(place.iterdir())}
    return [file for file in files.values() if file.is_file() and _is_lora(file)]


def _is_lora(file: Path) -> bool:
    if file.suffix in PICKLED_SUFFIXES:
        return "lora" in file.name.lower()
    content = _content(file)
    return content is not None and content.title == LORA


# ---- folders ----


def _checkpoint(folder: Path) -> Found | None:
    """Recognise a checkpoint in the released layout; its task is None when nothing there tells it."""
    experts = [folder / name for name in EXPERTS if (folder / name).is_dir()]
    if not experts and (folder.parent / "model_index.json").is_file():
        return None
    known = TWO_EXPERTS if experts else ONE_MODEL
    for task in (_model(place)[1] for place in experts or [folder]):
        if task in known:
            return Found(f"a checkpoint of {task}", task, folder)
    return Found("a checkpoint with two experts", None, folder) if experts else None


def _describe_folder(folder: Path) -> Found:
    if is_empty(folder):
        return Found(EMPTY, None, folder)
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if (folder / "model_index.json").is_file() or (folder / "transformer").is_dir():
        return _diffusers(folder)
    if folder.name.startswith("models--"):
        return _hub_cache(folder)
    inner = list(_checkpoints_below(folder))
    if len(inner) == 1:
        return Found(f"a folder with {inner[0].what} in it", inner[0].task, inner[0].folder)
    if inner:
        several = ", ".join(f"{shown(found.folder)} ({found.task})" for found in inner[:SHOWN])
        more = f" and {len(inner) - SHOWN} more" if len(inner) > SHOWN else ""
        return Found(f"a folder with {len(inner)} checkpoints in it: {several}{more}", inner=len(inner))
    if "adapter_config.json" in names:
        return Found(f"a folder with {LORA}")
    if title := _model(folder)[0]:
        return Found(f"a folder with {title}")
    if released := [name for name in names if name in ("google", *STAND_INS)]:
        task = "ti2v-5B" if "Wan2.2_VAE.pth" in released else None
        return Found("a checkpoint without a diffusion model", task, folder)
    if len(COMFYUI_FOLDERS & set(names)) > 1:
        return Found("a folder of models for ComfyUI, which has another layout than a checkpoint")
    if files := _weights_in(folder):
        return Found(f"a folder with {', '.join(files[:SHOWN])}{' and more' if len(files) > SHOWN else ''}")
    if "config.json" in names:
        return Found("a folder with a config.json that does not say what it is", None, folder)
    listed = shown(", ".join(names[:SHOWN]) + (" and more" if len(names) > SHOWN else ""))
    return Found(f"a folder without weights; it holds {listed or 'hidden files'}")


def _diffusers(folder: Path) -> Found:
    kind = str(described_fields(folder, "model_index.json").get("_class_name", ""))
    task = _model(folder / "transformer")[1]
    named = f" ({shown(kind, 60)})" if kind else ""
    return Found(f"a Diffusers pipeline{named}, whose parts lie under other names (docs/checkpoints.md)", task)


def _hub_cache(folder: Path) -> Found:
    """Find the snapshot that `main` means in a folder `models--owner--name` of the Hugging Face cache."""
    revisions = _folders_in(folder / "snapshots")
    try:
        main = (folder / "refs" / "main").read_text("utf-8").strip()
    except (OSError, ValueError):
        main = ""
    chosen = next((revision for revision in revisions if revision.name == main), revisions[-1] if revisions else None)
    if chosen is None:
        return Found("a folder of the Hugging Face cache without a snapshot; its download was broken off")
    found = recognise(chosen)
    return Found(f"a folder of the Hugging Face cache with {found.what} in it", found.task, found.folder)


def _weights_in(folder: Path) -> list[str]:
    """Describe the files with weights in a folder and in the folders of it."""
    files = [file for pattern in ("*", "*/*") for file in sorted(folder.glob(pattern))]
    kinds = [file for file in files if file.is_file() and file.suffix in (".safetensors", ".gguf", *PICKLED_SUFFIXES)]
    described = ((file, _describe_file(file)) for file in kinds)
    return [f"{shown(file.name)} ({kind})" for file, kind in described if kind != OTHER_FILE][: SHOWN + 1]


def _checkpoints_below(folder: Path) -> Iterator[Found]:
    """Yield the checkpoints below a folder whose task is known, nearest first."""
    queue, seen = deque([(folder, 0)]), 0
    while queue and seen < MAX_FOLDERS:
        place, depth = queue.popleft()
        for inner in _folders_in(place):
            seen += 1
            found = _checkpoint(inner)
            if found and found.task:
                yield found
            elif depth + 1 < MAX_DEPTH and not (inner / "model_index.json").is_file():
                queue.append((inner, depth + 1))


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _inside_another(path: Path, found: Found) -> Found | None:
    """Describe a path that is a part of a checkpoint or pipeline around it; None for others."""
    for outer in list(path.absolute().parents)[:3]:
        if (checkpoint := _checkpoint(outer)) and checkpoint.task:
            role = "one of the two experts" if path.name in EXPERTS and path.parent == outer else "a part"
            return Found(f"{role} of the {checkpoint.task} checkpoint {shown(outer)}", checkpoint.task, outer)
        if (outer / "model_index.json").is_file():
            whole = _diffusers(outer)
            return Found(f"{found.what}, a part of {shown(outer)}: {whole.what}", whole.task)
    return None


def _model(folder: Path) -> tuple[str | None, str | None]:
    """Return the description of the model in a folder and its task, each None when unknown."""
    if content := _content(folder):
        return content.title, content.task
    values = described_fields(folder)
    try:
        fields = released_fields(values)
    except ValueError:
        return "a transformer of another kind", None
    kind = model_type_of(fields)
    is_silent = "model_type" not in fields and folder.name not in EXPERTS
    named = any(name in values for name in ANIMATE_FIELDS) or any((folder / name).exists() for name in ANIMATE_FILES)
    if named or (is_silent and kind == "i2v"):
        return "the Animate transformer", TASKS["animate"]
    return (f"a {kind} transformer", TASKS[kind]) if isinstance(kind, str) and kind in TASKS else (None, None)


def described_fields(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """Read a JSON file of a folder; {} when that fails: the check of the layout names the fault."""
    try:
        values = read_json(folder / name, MAX_CONFIG_BYTES)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


# ---- files ----


def _describe_file(path: Path) -> str:
    if path.name.endswith(".latent.safetensors"):
        return "a latent; --resume decodes one"
    if content := _content(path):
        return content.title
    if path.suffix.lower() in OTHER_FILES:
        return OTHER_FILES[path.suffix.lower()]
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        return f"a file that cannot be read ({error.strerror})"
    is_weights = path.suffix == ".safetensors" or (path.suffix in PICKLED_SUFFIXES and start[:1] in (b"P", b"\x80"))
    return foreign_file(start) or ("a single file of weights" if is_weights else OTHER_FILE)


def _content(path: Path) -> Content | None:
    """Return the kind of the weights in a safetensors file or a folder of them; None when that is not known."""
    try:
        headers = [read_header(file) for file in weight_files(path)]
        return what_is({name: entry.shape for header in headers for name, entry in header.items()})
    except (OSError, ValueError):  # the layout check that follows names the fault
        return None
