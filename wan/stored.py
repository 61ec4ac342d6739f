"""Read and check the request in a video or kept latent, to make it again with other values."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from wan import media, output
from wan.arguments import FLAGS, OUTPUT
from wan.files import parse_json, shown, stored_name
from wan.inputs import Input, Sound
from wan.program import shell_word
from wan.request import Request, overridden
from wan.values import called

log = logging.getLogger(__name__)


class Stored(NamedTuple):
    """Request of a video, and the values written beside it: device, dtype, versions, fingerprint."""

    request: Request
    beside: dict[str, Any]

    def given(self, changes: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Return the values from which `Request.create` repeats the video in `folder`, with `changes`."""
        values = self.request.given()
        if changes.get("fit") == "area" != values.get("fit", "area"):
            del values["size"]  # it was made for another fit, and is hardly a size of the task
        if "prompt" in changes:
            del values["original_prompt"]
        values = overridden(values, changes)
        return values | {n: _find(value, n, folder) for n, value in values.items() if isinstance(value, Input)}

    def with_inputs(self, request: Request, folder: Path) -> Request:
        """Read the inputs of `request` again, for the clips that are not sampled yet. Raises as `given` does.

        Raises ValueError for an input that has changed since the first clips were sampled.
        """
        inputs = {name: type(old).of(_find(old, name, folder), name) for name, old in request.inputs.items()}
        for name, now in inputs.items():
            if now.sha256 != request.inputs[name].sha256:
                raise ValueError(f"{shown(now.path)} has changed since the first clips of the video were sampled")
        return replace(request, **inputs)

    def with_decoding_inputs(self, request: Request, folder: Path) -> Request:
        """Find what a video needs again whose clips are all sampled: its sound, and the surroundings of a character.

        Raises as `given`. A performance that is not there is missed for its sound alone, unless it is the background.
        """
        inputs = request.inputs
        found = {name: replace(s, path=_find(s, name, folder)) for name, s in inputs.items() if isinstance(s, Sound)}
        if (performance := request.performance) is not None:
            try:
                found["performance"] = type(performance).of(_find(performance, "performance", folder), "performance")
            except (OSError, ValueError) as error:
                if request.replace_flag:
                    raise
                log.warning("if the performance had a sound, the video goes without it: %s", error)
        return replace(request, **found)


def read_stored(args: argparse.Namespace) -> Stored | None:
    """Read the request in the file of --from_video or --resume; None without. Raises ValueError and OSError."""
    if args.resume:
        fixed = (flag.name for flag in FLAGS if (flag.field or flag.tasks) and flag.group != OUTPUT)
        changed = [f"--{name}" for name in (*fixed, "preset", "from_video") if getattr(args, name) not in (None, False)]
        if changed:
            raise ValueError(f"--resume only decodes what was sampled already; {', '.join(changed)} cannot change it")
        text = _stored_in_latent(args.resume)
    elif args.from_video:
        text = _stored_in_video(args.from_video)
    else:
        return None
    try:
        stored = Stored(Request.from_dict(beside := parse_json(text)), beside)
    except ValueError as error:
        source = shown(args.resume or args.from_video)
        raise ValueError(f"the request stored in {source} cannot be read: {shown(error, 500)}") from None
    if args.task not in (None, stored.request.task):
        raise ValueError(f"the stored request is for --task {stored.request.task}, not {args.task}")
    return stored


def _stored_in_latent(name: str) -> str:
    try:
        return output.stored_request(Path(name))
    except FileNotFoundError:
        if kept := output.kept_beside(Path(name)):
            cure = f"what was sampled of it is kept in {shown(kept)}: --resume {shell_word(str(kept))}"
            raise FileNotFoundError(f"there is no file {shown(name)}; {cure}") from None
        raise
    except ValueError:
        if (tags := _tried(media.read_metadata, name)) is None:
            raise
    again = f"; to make it again, or another like it, give --from_video {shell_word(name)}"
    raise ValueError(
        f"{name} is a video or picture, and --resume finishes a kept latent (*{output.LATENT_SUFFIX})"
        + again * (output.REQUEST_KEY in tags)
    )


def _stored_in_video(name: str) -> str:
    try:
        text = media.read_metadata(name).get(output.REQUEST_KEY)
    except ValueError:
        if _tried(output.stored_request, Path(name)) is None:
            raise
        raise ValueError(f"{name} is a kept latent, not a video; finish it with --resume {shell_word(name)}") from None
    if text is None:
        raise ValueError(
            f"{name} has no stored request: it was not made here, or with --no_metadata; describe the new video by "
            "--prompt and the other flags"
        )
    return text


def _tried(read: Callable[[Any], Any], file: str | Path) -> Any:
    """Read a file; None when that fails."""
    try:
        return read(file)
    except (ValueError, OSError):
        return None


def _find(given: Input, field: str, folder: Path) -> str:
    """Find the file that a video was made from: at the stored path, seen from here or from the video's folder."""
    for path in (Path(stored_name(given.path)), folder / stored_name(given.path)) if given.path else ():
        if os.path.exists(path):  # Path.exists raises for names that no file can have
            return str(path)
    name = shown(given.path or "in memory")
    raise FileNotFoundError(
        f"the video was made from the {given.noun} {name}, which is not there; say where it is: {called(field)} "
        f"{given.place}"
    )
