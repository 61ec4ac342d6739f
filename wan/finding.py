"""Find the task that --ckpt_dir and --task mean together, or the flags that were probably meant."""

import logging
from pathlib import Path

from wan.checkpoint.fingerprint import same_weights
from wan.checkpoint.layout import STAND_INS, download, free_place, repository, size_of
from wan.checkpoint.recognise import EMPTY, Found, loras_beside, recognise, refusal
from wan.configs import IMPLEMENTED_TASKS, TaskConfig, get_config
from wan.files import did_you_mean, shown
from wan.program import shell_word

log = logging.getLogger(__name__)

DEFAULT_TASK = "t2v-A14B"


def task_of(folder: Path, task: str | None) -> str | None:
    """Find the task for a folder: `task`, else the folder's own; None when it does not tell.

    Raises ValueError or FileNotFoundError that describes a path that is no checkpoint of that task.
    """
    found = recognise(folder) if folder.exists() else Found("", None, folder)
    if not folder.exists() or (task is None and found.what == EMPTY):
        raise FileNotFoundError(_how_to_fill(folder, task))
    if found.task and found.task not in IMPLEMENTED_TASKS:
        raise ValueError(f"{shown(folder)} is {found.what}; {found.task} is not available yet, it comes later")
    if reason := refusal(folder, found, task or found.task):
        raise ValueError(f"{reason}; {_meant(folder, found, task)}")
    if task is None and found.task:
        log.info("%s is %s: --task %s", shown(folder), found.what, found.task)
    return task or found.task


def warn_about_files(checkpoint: Path, config: TaskConfig) -> None:
    """Warn about equal experts, and about LoRA files that are not used."""
    if len(config.experts) == 2 and same_weights(*(checkpoint / expert for expert in config.experts)):
        both = f"{' and '.join(sorted(config.experts))} in {shown(checkpoint)}"
        log.warning("%s hold the same weights: expect worse videos than with two experts", both)
    own = (config.lora_checkpoint, *STAND_INS.get(config.lora_checkpoint, ()))
    for file in loras_beside(checkpoint, config.experts):
        if file.name not in own:
            log.warning("%s is a LoRA; it is not applied, this version reads none", shown(file))


def _how_to_fill(folder: Path, task: str | None) -> str:
    """Write the message for a folder that is missing or empty. Its name only tells which task was probably meant."""
    names = {repository(get_config(name)).lower(): name for name in IMPLEMENTED_TASKS}
    named = names.get(folder.name.lower())
    wanted = task or named or DEFAULT_TASK
    place = folder if folder.parent.is_dir() and not folder.is_symlink() and named in (None, wanted) else None
    more = "" if task or named in (None, DEFAULT_TASK) else f" and add --task {wanted}"
    what = f"{shown(folder)} is empty" if folder.exists() else f"there is no checkpoint folder {shown(folder)}"
    if not folder.exists() and (hint := did_you_mean(folder, 1)):
        return what + hint
    hint = "" if named or folder.exists() else did_you_mean(folder, 0.8)  # names of releases are alike
    cure = f"{hint} Else download it with" if hint else ". Download it with"
    return f"{what}{cure}: {download(get_config(wanted), place)}{more}"


def _meant(folder: Path, found: Found, task: str | None) -> str:
    """Advise flags when a path is no checkpoint of a task."""
    if found.folder == folder:
        return f"give --task {found.task}, or with --ckpt_dir the folder of a {task} checkpoint"
    if found.folder:
        more = f" --task {found.task}" if task and found.task != task else ""
        return f"give --ckpt_dir {shell_word(str(found.folder))}{more}"
    if found.inner:
        return "give one of them with --ckpt_dir"
    wanted = found.task or task
    if wanted is None:
        sizes = ", ".join(f"{repository(get_config(name))} {size_of(name)}" for name in IMPLEMENTED_TASKS)
        return f"give the folder of a released checkpoint with --ckpt_dir ({sizes}), or leave it out for the toy model"
    return f"give the folder of a released checkpoint: {how_to_get(get_config(wanted))}"


def how_to_get(config: TaskConfig) -> str:
    """Write the flag for the released checkpoint of a task, and its download unless it is in the current folder."""
    place = Path(repository(config))
    if place.is_dir() and recognise(place).task == config.name:
        return f"--ckpt_dir {place}"
    place = free_place(config)
    return f"{download(config, place)}, then --ckpt_dir {place}"
