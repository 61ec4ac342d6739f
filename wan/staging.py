"""Performance of a run that is given as a video and a picture: preprocessed into a folder, or found there."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from wan.choices import POSE_BACKENDS
from wan.configs import TaskConfig
from wan.distributed.util import broadcast_text, get_rank
from wan.files import shown
from wan.geometry import parse_size
from wan.inputs import file_digest
from wan.modules.animate.preprocess.backends import Networks, open_networks
from wan.modules.animate.preprocess.plan import Plan, Settings
from wan.modules.animate.preprocess.source import SOURCE_RATE
from wan.modules.animate.preprocess.stage import Stage
from wan.performance import DESCRIPTION, Performance
from wan.request import Request
from wan.runtime import own_device

log = logging.getLogger(__name__)

NETWORKS = "process_checkpoint"  # in a checkpoint
NO_DIFFERENCE = ("video", "picture", "folder", "overwrite")  # settings that say nothing about the content
NAMES = {
    "video_path": "--video",
    "refer_path": "--image",
    "save_path": "--keep_inputs",
    "resolution_area": "--size",
    "smooth": "--smooth",
}  # of the stage's settings


def planned(args: argparse.Namespace, config: TaskConfig, given: dict[str, Any]) -> Plan:
    """Plan to preprocess the video and the picture of the flags. `given` are the values of the request.

    Raises ValueError and OSError for what preprocessing or generation would refuse.
    """
    settings = settings_of(args, config)
    settings.check()
    plan = Plan.of(settings)
    expected = Performance(None, plan.pose_size, len(plan.driving), plan.driving.rate, "")
    Request.create(config, **given | {"performance": expected})
    return plan


def performed(args: argparse.Namespace, plan: Plan, checkpoint: Path, local_rank: int) -> str:
    """Preprocess what was planned; returns the folder. The first of several processes does so, and the others wait.

    Raises ValueError and OSError.
    """
    settings = plan.settings
    folder = settings.folder
    if get_rank() == 0:
        own = args_of_networks(args, checkpoint)
        networks = open_networks(own, settings)
        folder = folder_of(plan, networks, own)
        if folder != settings.folder and is_whole(folder, settings.replaces):
            log.info("the performance is prepared already: %s", shown(folder))
        else:
            log.info("preparing the performance in %s", shown(folder))
            settings = replace(settings, folder=folder)
            Stage(settings, networks.estimator, networks.identity, networks.segmenter, networks.editor).run()
    return broadcast_text(str(folder), own_device(args.device, local_rank))


def is_whole(folder: Path, replaces: bool) -> bool:
    """Tell whether a folder in the cache holds all of a performance; others may have deleted a part of it."""
    if not (folder / DESCRIPTION).is_file():
        return False
    try:
        Performance.of(folder).check(replaces, False)
    except (ValueError, OSError) as error:
        log.warning("the performance in the cache is damaged, and is made again: %s", error)
        return False
    return True


def settings_of(args: argparse.Namespace, config: TaskConfig) -> Settings:
    """Make the settings of the stage of the flags of the command. Raises ValueError when the picture is missing."""
    if not args.image:
        raise ValueError("--video needs --image FILE, the picture of the character")
    width, height = args.size or parse_size(config.size)
    return Settings(
        args.video,
        args.image,
        Path(args.keep_inputs or cache_folder()),
        area=width * height,
        fps=args.fps or SOURCE_RATE,
        retargets=args.retarget_flag,
        replaces=args.replace_flag,
        person=args.person,
        as_upstream=args.as_upstream,
        smooth=args.smooth or 0.0,
        preview=bool(args.keep_inputs),
        overwrite=args.overwrite,
    )


def args_of_networks(args: argparse.Namespace, checkpoint: Path) -> argparse.Namespace:
    """Make the flags that choose networks: those of the checkpoint, when it has them."""
    folder = checkpoint / NETWORKS
    return argparse.Namespace(
        ckpt_path=str(folder) if folder.is_dir() else None,
        masks=args.masks,
        pose_backend=args.pose_backend or POSE_BACKENDS[0],
        pose_input="bgr",
        detector=None,
        pose_model=None,
    )


def folder_of(plan: Plan, networks: Networks, args: argparse.Namespace) -> Path:
    """Name the folder: that of --keep_inputs, or one in the cache for inputs, settings and networks."""
    settings = plan.settings
    values = {name: str(value) for name, value in asdict(settings).items() if name not in NO_DIFFERENCE}
    masks = file_digest(args.masks) if args.masks and settings.replaces else None
    made_from = [plan.driving.film.sha256, plan.character.sha256, networks.identity, masks, sorted(values.items())]
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
    return settings.folder if settings.folder != cache_folder() else settings.folder / key


def cache_folder() -> Path:
    """Folder of prepared performances, where the system keeps what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "wan", "performances")
